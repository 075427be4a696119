"""Raw rows to dialogues.

- column_guess: Propose `data.columns` by the names of columns
- chat_markup: The marks of chat templates, to recognise a chat that is already rendered as text
- checked_text: Check texts, reasoning and names of a message
- columns: The text of a message from the columns that a recipe names
- copies: Check that a row with two conversations contains the same one twice
- entries: Bring a message of any known form to its speaker, `content` and further keys
- formats: The data formats, how each is recognised, and its conversion to `messages`
- keys: The table of keys that carry meaning, refused by name where nothing uses them
- line_counts: Counts of lines by what became of them, and the messages for faults
- loss_marks: Read whether a message carries loss, by its marks and the marks of its parts
- message_lists: Find the list of messages of a row, and read the earlier turns under `history`
- messages: Parse a row with `messages` as a Dialogue
- parts: Read the content of a message, which may be a list of parts
- preference: Rows marked as unwanted, and pairs of a chosen and a rejected reply
- prepare_row: Leave out ignored keys and unwanted replies before the format of a row is known
- rendered_chats: Chats that are already rendered as text: noted in each row, refused if a source has many
- read_position: The position between two chunks of rows
- roles: The names of speakers, and the role that each means
- row_fields: Fields that rows of several formats share
- row_limit: The limit to the rows of a source
- row_notes: Counts of what was done to rows or seen in them
- rows: Parse rows of files as dialogues or documents
- system_message: The system message of the recipe, put before dialogues that have none
- unreadable: One message for a file of which no row can be read
- tool_calls: Read the tool calls of a message and the function descriptions of a row
- turn_order: Join neighbours of one role if wanted, and cut off an open end
- values: Read lists given as JSON text or as columns, and numbers as text
"""
