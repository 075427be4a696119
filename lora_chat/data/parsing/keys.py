"""Keys that carry meaning and that nothing here uses: one table for rows, messages and parts of content.

A key outside of this table that nothing uses is harmless: it is counted as not used.
"""

import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from lora_chat.data.dialogue import InvalidDialogueError
from lora_chat.data.parsing.row_notes import RowNotes
from lora_chat.data.reading.raw_row import is_valid_utf8

ROW, MESSAGE, PART = "row", "message", "part"
_EMPTY_TEXTS = frozenset({"", "[]", "{}", "null", "none", "nan"})
_MAX_DEPTH = 8
"""Levels of a value that are searched for something that is not empty."""


def is_filled(value: object, depth: int = 0) -> bool:
    """Return whether a value is something else than null, an empty text, or a list or object of such values."""
    if isinstance(value, str):
        return value.strip().lower() not in _EMPTY_TEXTS
    if isinstance(value, float):
        return not math.isnan(value)
    if isinstance(value, (list, tuple, Mapping)) and depth < _MAX_DEPTH:
        members = value.values() if isinstance(value, Mapping) else value
        return any(is_filled(member, depth + 1) for member in members)
    return value is not None


def is_on(value: object) -> bool:
    """Return whether a value is filled, and neither false nor 0."""
    return is_filled(value) and not (isinstance(value, (int, float)) and value == 0) and not is_false(value)


def is_false(value: object) -> bool:
    """Return whether a value is false, also as text in a table."""
    return value is False or (isinstance(value, str) and value.strip().lower() == "false")


def is_true(value: object) -> bool:
    """Return whether a value is true, also as text in a table."""
    return value is True or (isinstance(value, str) and value.strip().lower() == "true")


def as_number(value: object) -> float | None:
    """Return a number, also from text in a table; None for other values."""
    if isinstance(value, (int, float)):
        return float(value)
    try:
        return float(value) if isinstance(value, str) and len(value) < 40 else None
    except ValueError:
        return None


def _is_other_weight(value: object) -> bool:
    """Return whether a value is a number other than 1."""
    number = as_number(value)
    return number is not None and number != 1 and not math.isnan(number)


@dataclass(frozen=True)
class KeyRule:
    """Keys with one meaning; one entry of `MEANINGFUL_KEYS`."""

    names: tuple[str, ...]
    """Keys in lower case with underscores."""
    reason: str
    """What would be lost."""
    places: tuple[str, ...] = (ROW, MESSAGE, PART)
    fix: str = ""
    """Change of the data or recipe that keeps the meaning."""
    carries_meaning: Callable[[object], bool] = is_on


MEANINGFUL_KEYS = (
    KeyRule(
        (
            *("image", "images", "img", "imgs", "picture", "pictures", "photo", "photos", "image_url", "image_urls"),
            *("image_path", "image_paths", "image_file", "images_path", "pixel_values", "rejected_images"),
            *("video", "videos", "video_url", "video_path", "video_paths", "frames"),
            *("audio", "audios", "audio_url", "audio_path", "audio_paths", "speech", "sound", "sounds", "input_audio"),
        ),
        "lora_chat trains on text only",
    ),
    KeyRule(("objects", "bbox", "bboxes", "boxes", "regions"), "places in a picture are not trained"),
    KeyRule(("attachments", "files", "file", "file_ids", "file_id"), "the text of files is not read", (MESSAGE, PART)),
    KeyRule(
        ("context", "contexts", "passage", "passages", "document", "documents", "docs", "knowledge"),
        "the question would be trained without it",
        fix="put it into the text of the question, or name its column in data.columns.user",
    ),
    KeyRule(
        (
            *("history", "chat_history", "conversation_history", "dialogue_history", "message_history"),
            *("previous_messages", "past_messages"),
        ),
        "earlier turns would be left out",
        fix="write the row as `messages`",
    ),
    KeyRule(
        (
            *("tools", "functions", "available_tools", "available_functions", "tool_list", "function_list"),
            *("tool_definitions", "function_definitions", "tool_schemas", "tools_schema", "api_list", "apis"),
        ),
        "tools are read from `tools` of the row",
        fix="name it `tools`, beside the messages of the row",
    ),
    KeyRule(
        ("tool_call", "tool_calls", "function_call", "function_calls"),
        "calls are read from `tool_calls` of a message",
        fix="write the row as `messages`",
    ),
    KeyRule(("tool_responses", "tool_results", "tool_plan", "observation"), "it is in no token", (MESSAGE,)),
    KeyRule(
        ("system", "system_prompt", "system_message", "system_instruction", "system_instructions", "sys_prompt"),
        "the rows would be trained without their system message",
        (ROW, MESSAGE),
        fix="name its column with data.columns.system, or put it first among the messages",
    ),
    KeyRule(
        (
            *("chat_template_kwargs", "template_kwargs", "chat_template", "enable_thinking", "reasoning_effort"),
            *("thinking_mode", "builtin_tools", "xml_tools", "python_tools", "custom_instructions"),
        ),
        "rows cannot set variables of the chat template",
        (ROW, MESSAGE),
        carries_meaning=is_filled,
    ),
    KeyRule(
        (
            *("reasoning_content", "reasoning", "thinking", "thought", "thoughts", "cot", "complex_cot"),
            *("chain_of_thought", "reasoning_text", "reasoning_details", "thinking_blocks", "reasoning_trace"),
        ),
        "the reply would be trained without its reasoning",
        fix="name it `reasoning_content`, in the message of the assistant",
        carries_meaning=is_filled,
    ),
    KeyRule(("refusal",), "the text is not read", (MESSAGE, PART), fix="name it `content`"),
    KeyRule(
        ("mask", "loss_mask", "train_mask", "assistant_mask", "assistant_masks", "completion_mask", "train_detail"),
        "loss is decided for whole messages",
        fix='exclude messages with "train": false',
    ),
    KeyRule(
        ("weight", "loss_weight", "sample_weight", "example_weight", "loss_scale"),
        "rows cannot be weighted",
        (ROW,),
        fix="give a source its weight: data.train=[{path: FILE, weight: 0.5}]",
        carries_meaning=_is_other_weight,
    ),
    KeyRule(
        ("label", "labels", "label_text", "label_name"),
        "the text would be trained without its class",
        (ROW,),
        fix="train the class as the answer: data.columns={user: COLUMN, assistant: COLUMN}",
        carries_meaning=is_filled,
    ),
    KeyRule(("prefix", "partial"), "every reply ends with its stop token", (MESSAGE,), carries_meaning=is_true),
    KeyRule(
        ("end_turn", "train_on_eot", "train_on_eos"),
        "every reply ends with its stop token, which is trained",
        (MESSAGE,),
        carries_meaning=is_false,
    ),
    KeyRule(("channel", "recipient"), "channels and recipients are in no token", (MESSAGE,)),
)
"""Keys that are refused by name where nothing uses them, unless their value is neutral."""

_RULES = {(level, name): rule for rule in MEANINGFUL_KEYS for level in rule.places for name in rule.names}


WANTED_KEYS = frozenset(
    {"label", "kto_tag", "kto_label", "desirable", "is_desirable", "preferred", "is_preferred", "chosen", "is_chosen"}
    | {"accepted", "is_accepted", "good", "is_good", "wanted", "correct", "is_correct", "thumbs_up", "train"}
    | {"trainable", "use_for_training"}
)
"""Keys of a row whose value false marks its reply as unwanted."""
UNWANTED_KEYS = frozenset(
    {"rejected", "is_rejected", "undesirable", "is_undesirable", "unwanted", "bad", "is_bad", "thumbs_down"}
)
"""Keys of a row whose value true marks its reply as unwanted."""


def format_keys(row: Mapping[str, object]) -> str:
    """Format the first keys of a row for a message."""
    return ", ".join(ascii(key) for key in list(row)[:8]) or "none"


def normalize_key(key: str) -> str:
    """Return a key in lower case with underscores, so that other spellings of a name are found too."""
    key = key[:100]
    return re.sub(r"[\s\-.]+", "_", re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", key).strip()).lower()


def is_mark(key: str, value: object) -> bool:
    """Return whether a value under a key of a row marks its reply as wanted or unwanted."""
    is_switch = isinstance(value, bool) or is_true(value) or is_false(value) or as_number(value) in (0, 1)
    return is_switch and normalize_key(key) in WANTED_KEYS | UNWANTED_KEYS


def check_unused(
    entry: Mapping[str, object],
    used: Iterable[str],
    level: str,
    notes: RowNotes,
    where: str = "",
    *,
    has_classes: bool = False,
) -> None:
    """Refuse a key that carries meaning and is not used; count the other keys that nothing uses.

    With `has_classes`, a label of 0 or 1 is a class and not a mark of a reply. Raises InvalidDialogueError with the
    key, the reason and a way out.
    """
    counted = []
    for key in entry.keys() - frozenset(used):
        rule = _RULES.get((level, normalize_key(key)))
        if not is_filled(entry[key]) or (level == ROW and not has_classes and is_mark(key, entry[key])):
            continue
        if level != ROW and not key.isascii() and not is_valid_utf8(key):
            raise InvalidDialogueError(f"{where} has {key[:60]!a}, which is not UTF-8 text")
        if rule is None or key in notes.ignored_keys:
            counted.append(key)
        elif rule.carries_meaning(entry[key]):
            raise lost_key_error(key, rule.reason, rule.fix, where)
    notes.add_unused(f"{key} of {level}s" if level != ROW else key for key in counted)


def lost_key_error(key: str, reason: str, fix: str = "", where: str = "") -> InvalidDialogueError:
    """Return the error for a key whose meaning would be lost."""
    ways = [*([fix] if fix else []), f"to read without it: --set data.ignore_keys={ascii(key[:60])[1:-1]}"]
    subject = f"{where} has" if where else "has"
    return InvalidDialogueError(f"{subject} {key[:60]!a}, which would be lost: {reason}; {', or '.join(ways)}")
