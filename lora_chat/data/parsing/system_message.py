"""The system message of the recipe, put before dialogues that have none."""

from dataclasses import replace

from lora_chat.data.dialogue import Dialogue, Message
from lora_chat.data.parsing.row_notes import RowNotes

ADDED_NOTE, REPLACED_NOTE, OWN_NOTE = "system_added", "system_replaced", "system_own"
"""Names of the notes for the three cases."""


def set_system_message(dialogue: Dialogue, text: str, notes: RowNotes, *, replaces: bool) -> Dialogue:
    """Return the dialogue with a system message, if it has none, or if it begins with another that is replaced.

    A blank system message counts as none.
    """
    begin = next((i for i, message in enumerate(dialogue.messages) if message.role != "system"), 0)
    own, rest = dialogue.messages[:begin], dialogue.messages[begin:]
    has_own = any(message.content.strip() for message in dialogue.messages if message.role == "system")
    if [message.content for message in own] == [text]:
        return dialogue
    if has_own and not (replaces and own):
        notes.add(OWN_NOTE)
        return dialogue
    notes.add(REPLACED_NOTE if has_own else ADDED_NOTE)
    return replace(dialogue, messages=(Message("system", text), *rest))
