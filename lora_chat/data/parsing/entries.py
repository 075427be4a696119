"""Bring a message of any known form to its speaker, `content` and further keys."""

from collections.abc import Iterator, Mapping

from lora_chat.data.dialogue import InvalidDialogueError
from lora_chat.data.parsing.roles import Speaker, find_speaker, format_known_speakers
from lora_chat.data.parsing.values import parse_json_text

Entry = Mapping[str, object]
"""A message as the data has it, unchecked."""

_SPEAKER_KEYS = ("role", "from")
_OTHER_SPEAKER_KEYS = ("speaker", "author", "sender")
"""Keys that name the speaker of a message without `role` and `from`, if their value is a known name."""
_TEXT_KEYS = ("content", "value", "text", "message", "utterance", "parts")
_PAIR_ORDER: tuple[Speaker, ...] = ("system", "user", "assistant")
"""Order of the messages of an object such as `{"human": ..., "assistant": ...}`."""


def find_speaker_key(entry: object) -> str | None:
    """Return the key that names the speaker of a message, or None."""
    if not isinstance(entry, Mapping):
        return None
    named = next((key for key in _SPEAKER_KEYS if entry.get(key) is not None), None)
    return named or next((key for key in _OTHER_SPEAKER_KEYS if find_speaker(entry.get(key))), None)


def is_pair(entry: object) -> bool:
    """Return whether an object has the names of speakers as keys, with their texts as values."""
    if not isinstance(entry, Mapping) or find_speaker_key(entry):
        return False
    speakers = [find_speaker(key) for key, value in entry.items() if value is not None]
    known = [speaker for speaker in speakers if speaker in _PAIR_ORDER]
    return bool(known) and len(set(known)) == len(known) and len(known) == len(speakers)


def read_entry(entry: object, number: int) -> Iterator[tuple[Speaker, dict[str, object]]]:
    """Yield the speaker and the keys of a message, with its text under `content`; a pair gives several messages."""
    if isinstance(entry, str) and entry.lstrip().startswith("{"):
        entry = parse_json_text(entry, f"message {number}")
    if not isinstance(entry, Mapping):
        raise InvalidDialogueError(f"message {number} is not an object with `role` and `content`")
    if is_pair(entry):
        contents = {find_speaker(key): value for key, value in entry.items() if value is not None}
        for speaker in _PAIR_ORDER:
            if contents.get(speaker) is not None and (speaker, contents[speaker]) != ("system", ""):
                yield speaker, {"content": contents[speaker]}
        return
    speaker, used = _read_speaker(entry, number)
    text_key = _find_text_key(entry, f"message {number} ({speaker})", used)
    fields = {key: value for key, value in entry.items() if key not in used and key not in _TEXT_KEYS}
    yield speaker, fields | ({"content": entry[text_key]} if text_key else {})


def _read_speaker(entry: Entry, number: int) -> tuple[Speaker, set[str]]:
    """Return the speaker of a message and the keys that name it."""
    key = find_speaker_key(entry) or "role"
    speaker = find_speaker(entry.get(key))
    if speaker is None:
        raise InvalidDialogueError(
            f"message {number} has the role {entry.get(key)!r}; known roles are {format_known_speakers()}"
        )
    others = {other: find_speaker(entry.get(other)) for other in _SPEAKER_KEYS if entry.get(other) is not None}
    if any(other not in (None, speaker) for other in others.values()):
        raise InvalidDialogueError(
            f"message {number} has the roles {entry.get('role')!r} and {entry.get('from')!r}, which differ"
        )
    return speaker, {key, *_SPEAKER_KEYS} - {other for other, meaning in others.items() if meaning is None}


def _find_text_key(entry: Entry, where: str, used: set[str]) -> str | None:
    """Return the key of the text of a message; raises InvalidDialogueError for two different texts."""
    keys = [key for key in _TEXT_KEYS if key not in used and entry.get(key) is not None]
    keys = [key for key in keys if entry[key] not in ("", [])] or keys
    if any(entry[key] != entry[keys[0]] for key in keys):
        raise InvalidDialogueError(f"{where} has `{keys[0]}` and `{keys[1]}`, which differ")
    return keys[0] if keys else None
