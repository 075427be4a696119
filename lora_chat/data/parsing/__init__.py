"""Raw rows to dialogues.

- content: Read the text, the reasoning and the names of a message
- chat_markup: The marks of chat templates, to recognise a chat that is already rendered as text
- formats: The data formats, how each is recognised, and its conversion to `messages`
- messages: Parse a row with `messages` as a Dialogue
- rendered_chats: Chats that are already rendered as text: noted in each row, refused if a source has many
- row_notes: Counts of what was done to rows or seen in them
- rows: Parse rows of files as dialogues or documents, and count faulty lines
- tool_calls: Read the tool calls of a message and the function descriptions of a row
"""
