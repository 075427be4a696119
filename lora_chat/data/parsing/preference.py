"""Preference data: rows marked as unwanted, and pairs of a chosen and a rejected reply."""

from collections.abc import Collection, Mapping, Sequence

from lora_chat.config.data import DataFormat
from lora_chat.data.dialogue import InvalidDialogueError
from lora_chat.data.parsing.keys import (
    UNWANTED_KEYS,
    WANTED_KEYS,
    as_number,
    is_false,
    is_filled,
    is_mark,
    is_true,
    normalize_key,
)
from lora_chat.data.parsing.row_notes import RowNotes

_WEIGHT_KEYS = frozenset({"weight", "loss_weight", "sample_weight", "example_weight"})
"""Keys of a row whose value 0 excludes it from training."""
_LABEL_KEYS = frozenset({"label", "kto_tag", "kto_label"})
_UNWANTED_LABELS = frozenset({"undesirable", "unwanted", "rejected", "dispreferred"})

_CHOSEN_KEYS = ("chosen", "chosen_response", "chosen_messages", "chosen_output", "preferred_output")
_REJECTED_KEYS = (
    *("rejected", "rejected_response", "rejected_messages", "rejected_output", "non_preferred_output"),
    *("dispreferred_output", "dispreferred"),
)
_LIST_KEYS = ("conversations", "conversation", "messages", "prompt", "input")
_QUESTION_KEYS = ("prompt", "question", "query", "input")
_HOW = "--set data.drop_unwanted=true"


class UnwantedRowError(InvalidDialogueError):
    """A row that is left out because its reply is marked as unwanted."""


def check_wanted(row: Mapping[str, object], data_format: DataFormat | None, used: Collection[str], drop: bool) -> None:
    """Raise UnwantedRowError for a row marked as unwanted, or InvalidDialogueError if such rows are not left out."""
    has_classes = data_format in ("columns", "text")
    for key, value in row.items():
        if key in used or not _is_unwanted(normalize_key(key), value, has_classes):
            continue
        if drop:
            raise UnwantedRowError(f"is marked as unwanted ({key})")
        raise InvalidDialogueError(
            f"is marked as unwanted ({ascii(key[:60])[1:-1]}: {ascii(value)[:20]}): this is preference data "
            f"({ascii(key[:60])[1:-1]}); to leave such rows out: {_HOW}"
        )


def _is_unwanted(name: str, value: object, has_classes: bool) -> bool:
    """Return whether a key marks its row as unwanted; the label 0 may be a class where a recipe names the columns."""
    if name in _LABEL_KEYS and not has_classes:
        text = value.strip().lower() if isinstance(value, str) else ""
        return is_false(value) or as_number(value) == 0 or text in _UNWANTED_LABELS
    if name in _WEIGHT_KEYS:
        return not isinstance(value, bool) and as_number(value) == 0
    return is_false(value) if name in WANTED_KEYS else name in UNWANTED_KEYS and is_true(value)


def find_pair_keys(row: Mapping[str, object]) -> list[str]:
    """Return the keys of a row that contain chosen or rejected replies."""
    return [key for key in row if normalize_key(key) in _CHOSEN_KEYS + _REJECTED_KEYS]


def take_chosen(row: Mapping[str, object], drop: bool, notes: RowNotes) -> Mapping[str, object]:
    """Return a preference pair as a row with its chosen reply, and any other row unchanged.

    Raises InvalidDialogueError for a pair if the rejected replies are not left out (`data.drop_unwanted`).
    """
    names = {normalize_key(key): key for key in row}
    chosen, rejected = _find(row, names, _CHOSEN_KEYS), _find(row, names, _REJECTED_KEYS)
    is_pair_of_outputs = isinstance(row.get("output"), list) and "instruction" in row
    if chosen is None and rejected is None and not is_pair_of_outputs:
        return row
    if is_filled(row.get("messages")) and row["messages"] == chosen:
        return {key: value for key, value in row.items() if normalize_key(key) not in _CHOSEN_KEYS + _REJECTED_KEYS}
    if not drop:
        raise InvalidDialogueError(
            f"has `chosen` and `rejected` replies: these are preference pairs; to train on the chosen replies: {_HOW}"
            if chosen is not None
            else f"has a rejected reply: this is preference data; to train on the other replies: {_HOW}"
        )
    notes.add("chosen")
    rest = {key: value for key, value in row.items() if normalize_key(key) not in _CHOSEN_KEYS + _REJECTED_KEYS}
    if is_pair_of_outputs:
        outputs = row["output"]
        chosen = outputs[0] if isinstance(outputs, list) and outputs else None
        rest.pop("output")
    return rest if chosen is None else _join_chosen(rest, chosen, rejected)


def _find(row: Mapping[str, object], names: Mapping[str, str], keys: Sequence[str]) -> object:
    """Return the filled text, message or list under one of several keys, or None."""
    for name in keys:
        value = row[names[name]] if name in names else None
        if isinstance(value, (str, list, Mapping)) and is_filled(value) and not is_mark(name, value):
            return value
    return None


def _join_chosen(rest: dict[str, object], chosen: object, rejected: object) -> Mapping[str, object]:
    """Return a row with the chosen reply after its prompt."""
    request = rest.get("input")
    if isinstance(request, Mapping) and isinstance(request.get("messages"), list):  # OpenAI's pairs
        rest = {**{key: value for key, value in rest.items() if key != "input"}, **request}
    list_key = next((key for key in _LIST_KEYS if isinstance(rest.get(key), list) and rest[key]), None)
    if isinstance(chosen, str):
        if list_key is None:
            return _join_text(rest, chosen)
        style = rest[list_key]
        is_sharegpt = isinstance(style, list) and isinstance(style[0], Mapping) and "from" in style[0]
        chosen = {"from": "gpt", "value": chosen} if is_sharegpt else {"role": "assistant", "content": chosen}
    replies = chosen if isinstance(chosen, list) else [chosen]
    if not all(isinstance(reply, Mapping) for reply in replies):
        raise InvalidDialogueError("has `chosen` replies that are not messages")
    prompt = rest.pop(list_key) if list_key else _prompt_messages(rest, replies)
    if not isinstance(prompt, list):
        raise InvalidDialogueError("has `chosen` replies without a list of messages before them")
    if replies[: len(prompt)] == prompt:
        prompt, replies = replies[: len(prompt)], replies[len(prompt) :]
    elif prompt and any(_is_user(reply) for reply in replies):
        raise InvalidDialogueError("has `chosen` messages that do not continue its other messages")
    shared = _count_shared([*prompt, *replies], rejected)
    earlier = [*prompt, *replies][: max(len(prompt), shared)]
    messages = [{**m, "train": False} if isinstance(m, Mapping) else m for m in earlier]
    return {**rest, "messages": [*messages, *[*prompt, *replies][len(earlier) :]]}


def _join_text(rest: dict[str, object], chosen: str) -> Mapping[str, object]:
    """Return a row with a chosen text after its question."""
    if "instruction" in rest:
        return {**rest, "output": chosen}
    key = next((key for key in _QUESTION_KEYS if isinstance(rest.get(key), str)), None)
    if key is None:
        raise InvalidDialogueError(
            "has a `chosen` text without a question; write `prompt` and `chosen`, or `chosen` as a list of messages"
        )
    question = rest.pop(key)
    return {**rest, "prompt": question, "completion": chosen}


def _prompt_messages(rest: dict[str, object], replies: Sequence[object]) -> list[object]:
    """Return the question of a row as messages, or nothing if the chosen messages begin with it."""
    key = next((key for key in (*_QUESTION_KEYS, "instruction") if isinstance(rest.get(key), str)), None)
    if key is None:
        return []
    question = rest.pop(key)
    if not any(_is_user(reply) for reply in replies):
        return [{"role": "user", "content": question}]
    if not any(isinstance(r, Mapping) and question in (r.get("content"), r.get("value")) for r in replies):
        raise InvalidDialogueError(f"has `chosen` messages that do not contain its `{key}`")
    return []


def _is_user(message: object) -> bool:
    """Return whether a message is from the user."""
    return isinstance(message, Mapping) and message.get("role", message.get("from")) in ("user", "human")


def _count_shared(messages: Sequence[object], rejected: object) -> int:
    """Return how many first messages a chosen and a rejected list share; the last message is never shared."""
    if not isinstance(rejected, list):
        return len(messages) - 1
    shared = 0
    while shared < min(len(messages) - 1, len(rejected)) and messages[shared] == rejected[shared]:
        shared += 1
    return shared
