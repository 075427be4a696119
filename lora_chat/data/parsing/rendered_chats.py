"""Chats that are already rendered as text: noted in each row, and refused if much of a source is one."""

from lora_chat.data.dialogue import Dialogue
from lora_chat.data.parsing.chat_markup import CHAT_MARKUPS, find_rendered_chat
from lora_chat.data.parsing.row_notes import RowNotes
from lora_chat.errors import DataError
from lora_chat.system.sanitize import sanitize_line

MIN_RENDERED_SHARE = 0.1
"""Share of the texts of a source that are rendered chats, from which the source is refused."""
TEXT_NOTE = "texts"
"""Name of the count of all texts of a source; it has no title, so it is not shown."""


def note_rendered_text(text: str, notes: RowNotes) -> None:
    """Count a text, and note whether it is a rendered chat."""
    notes.add(TEXT_NOTE)
    markup = find_rendered_chat(text)
    if markup is not None:
        notes.add(markup.text_note)


def note_rendered_messages(dialogue: Dialogue, notes: RowNotes) -> None:
    """Note whether the messages of a dialogue contain rendered turns."""
    texts = [message.content for message in dialogue.messages if message.role in ("user", "assistant")]
    markup = find_rendered_chat("\n".join(texts))
    if markup is not None:
        notes.add(markup.messages_note)


def check_rendered_chats(where: str, notes: dict[str, int]) -> None:
    """Raise DataError if a clear share of the texts of a source are rendered chats."""
    counts = [(markup, notes[markup.text_note]) for markup in CHAT_MARKUPS if notes.get(markup.text_note)]
    rendered, texts = sum(count for _, count in counts), notes.get(TEXT_NOTE, 0)
    if not rendered or rendered < MIN_RENDERED_SHARE * texts:
        return
    titles = ", ".join(markup.title for markup, _ in counts)
    raise DataError(
        f"{rendered:,} of {texts:,} texts of {sanitize_line(where)} are rendered chats ({titles}), which would be "
        "trained as plain text: with loss on the questions too, and with control tokens as plain characters. Fix: "
        "bring them as `messages`, or train on the plain text with --set data.rendered_chats=text."
    )
