"""What may be wrong with dialogues before a model learns them: secrets, people's data, copies, leaks, odd replies."""
