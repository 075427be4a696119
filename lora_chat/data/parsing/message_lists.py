"""Find the list of messages of a row, and read the earlier turns under `history`."""

from collections.abc import Mapping

from lora_chat.data.dialogue import InvalidDialogueError
from lora_chat.data.parsing.entries import find_speaker_key, is_pair
from lora_chat.data.parsing.roles import find_speaker
from lora_chat.data.parsing.values import parse_json_text, read_list

Row = Mapping[str, object]
"""An object as JSON or a table has it; nothing in it is checked yet."""

LIST_KEYS = ("conversations", "conversation", "messages")
"""Keys of a list of messages."""
OTHER_LIST_KEYS = ("dialog", "dialogue", "dialogs", "dialogues", "turns", "chat", "chats", "contents", "transcript")
"""Keys that may have another meaning, so that they count only if their value is a list of messages."""
_QUESTION_KEYS, _ANSWER_KEYS = ("query", "question", "instruction", "prompt"), ("response", "answer", "completion")
"""Keys of a pair in `history`, beside the names of speakers."""


def find_message_list(row: Row) -> tuple[str, list[object]] | None:
    """Return the key and the value of the list of messages in a row, or None."""
    for key in (*LIST_KEYS, *OTHER_LIST_KEYS):
        if row.get(key) and (entries := decode_messages(row[key])):
            return key, entries
    return None


def decode_messages(value: object) -> list[object] | None:
    """Return a list of messages, which may be JSON text or an object of lists; None for any other value."""
    if isinstance(value, str) and value.lstrip()[:1] not in ("[", "{", '"'):
        return None
    try:
        entries = read_list(value, "")
        first = entries[0] if isinstance(entries, list) and entries else None
        if isinstance(first, str) and first.lstrip().startswith("{"):
            first = parse_json_text(first, "")
    except InvalidDialogueError:
        return None
    return entries if isinstance(entries, list) and (find_speaker_key(first) or is_pair(first)) else None


def has_sharegpt_names(entry: object) -> bool:
    """Return whether a message names its speaker as ShareGPT does: under `from`, or as the key of its text."""
    return is_pair(entry) or (isinstance(entry, Mapping) and entry.get("from") is not None)


def turn_messages(question: object, answer: object) -> list[object]:
    """Return a question and its answer as messages."""
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def read_history(value: object) -> list[object]:
    """Return the messages of `history`: pairs of question and answer as lists or objects, or messages.

    A null in a pair means that this message is not there.
    """
    turns = [] if value in (None, "", [], {}) else read_list(value, "`history`")
    if not isinstance(turns, list):
        raise InvalidDialogueError("has a `history` that is not a list of pairs")
    if decode_messages(turns):
        return turns
    return [message for number, turn in enumerate(turns, 1) for message in _read_turn(turn, number)]


def _read_turn(turn: object, number: int) -> list[object]:
    """Return the messages of one pair."""
    pair: object = turn
    if isinstance(turn, Mapping):
        keys = {key: turn[key] for key in turn if turn[key] is not None}
        questions = [key for key in keys if key in _QUESTION_KEYS or find_speaker(key) == "user"]
        answers = [key for key in keys if key in _ANSWER_KEYS or find_speaker(key) == "assistant"]
        if len(questions) <= 1 and len(answers) <= 1 and len(questions) + len(answers) == len(keys):
            pair = [keys.get(questions[0]) if questions else None, keys.get(answers[0]) if answers else None]
    if not isinstance(pair, list | tuple) or len(pair) != 2:
        raise InvalidDialogueError(f"turn {number} of `history` is not a pair of question and answer")
    return [message for message, content in zip(turn_messages(*pair), pair, strict=True) if content is not None]
