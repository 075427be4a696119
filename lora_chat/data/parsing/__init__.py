"""Rows to dialogues.

- formats: The common formats of chat data
- messages: A row with `messages` (OpenAI's format) -> Dialogue
- rows: Rows -> dialogues and documents
"""
