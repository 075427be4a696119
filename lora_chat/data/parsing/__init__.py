"""Raw rows to dialogues.

- formats: The data formats, how each is recognised, and its conversion to `messages`
- messages: Parse a row with `messages` as a Dialogue
- row_notes: Counts of what was done to rows or seen in them
- rows: Parse rows of files as dialogues or documents, and count faulty lines
"""
