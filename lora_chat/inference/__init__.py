"""Generation and chat.

- batching: How many prompts are answered together, and the memory of their keys and values
- chat: A conversation in the terminal, or through a pipe
- generation: Prompt ids -> replies that stop at the end of the turn
"""
