"""Raw rows to dialogues.

- content: Read the text, the reasoning and the names of a message
- formats: The data formats, how each is recognised, and its conversion to `messages`
- messages: Parse a row with `messages` as a Dialogue
- row_notes: Counts of what was done to rows or seen in them
- rows: Parse rows of files as dialogues or documents, and count faulty lines
- tool_calls: Read the tool calls of a message and the function descriptions of a row
"""
