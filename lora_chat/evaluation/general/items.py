"""Items of a general set: a prompt with a check of the reply. The shipped set, and files of the user."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path

from lora_chat.data.dialogue import InvalidDialogueError
from lora_chat.data.reading.files import read_lines
from lora_chat.errors import DataError
from lora_chat.evaluation.general.checks import CHECKS
from lora_chat.evaluation.general.reply_texts import EAST_ASIAN_LETTER
from lora_chat.system.strict_json import parse_strict_json

MAX_ITEMS, MAX_PROMPT_CHARACTERS = 2000, 4000
"""Largest number of items in a file, and of characters in a prompt."""
_MAX_NAME_CHARACTERS = 60
_SHIPPED_FILES = ("en.jsonl", "zh.jsonl")
_KEYS = ("id", "language", "kind", "prompt", "check", "arguments")


@dataclass(frozen=True)
class GeneralItem:
    """A prompt with the check of its reply."""

    id: str
    language: str
    kind: str
    """Kind of ability, such as `fact`; figures are also given by kind."""
    prompt: str
    check: str
    """Name of a check in `CHECKS`."""
    arguments: Mapping[str, object]
    path: str = field(default="", compare=False)
    line: int = field(default=0, compare=False)
    """Line in its file, counted from 1; 0 if the item is not from a file."""

    def is_answered_by(self, reply: str) -> bool:
        """Return whether a reply passes the check."""
        return CHECKS[self.check].passes(reply, self.arguments)

    @property
    def as_row(self) -> dict[str, object]:
        """Return the item as a row of a file."""
        return {key: getattr(self, key) for key in _KEYS}

    @property
    def texts(self) -> list[str]:
        """Return the prompt and all texts of the arguments."""
        texts = [self.prompt]
        for value in self.arguments.values():
            texts += [value] if isinstance(value, str) else list(value) if isinstance(value, tuple) else []
        return texts

    def with_texts(self, texts: Sequence[str]) -> "GeneralItem":
        """Return the item with other texts, in the order of `texts`."""
        prompt, *rest = texts
        remaining = iter(rest)
        arguments = {
            name: next(remaining)
            if isinstance(value, str)
            else tuple(next(remaining) for _ in value)
            if isinstance(value, tuple)
            else value
            for name, value in self.arguments.items()
        }
        return replace(self, prompt=prompt, arguments=arguments)


@lru_cache(maxsize=1)
def read_shipped_items() -> tuple[GeneralItem, ...]:
    """Return the items that are part of the package."""
    folder = Path(__file__).parent
    return tuple(item for name in _SHIPPED_FILES for item in read_items(str(folder / name)))


def read_items(path: str) -> list[GeneralItem]:
    """Read items, or questions with accepted answers, as JSON lines. Raise DataError with file and line."""
    items: list[GeneralItem] = []
    lines_by_id: dict[str, int] = {}
    for number, raw in read_lines(Path(path)):
        if not raw.strip():
            continue
        try:
            item = replace(_parse_item(parse_strict_json(raw.decode("utf-8")), number), path=path, line=number)
            if (earlier := lines_by_id.setdefault(item.id, number)) != number:
                raise ValueError(f"the id {item.id!a} is already in line {earlier}")
        except (InvalidDialogueError, ValueError) as error:
            raise DataError(f"{path}:{number}: {error}") from error
        items.append(item)
        if len(items) > MAX_ITEMS:
            raise DataError(f"{path} has more than {MAX_ITEMS:,} items. Fix: take fewer.")
    if not items:
        raise DataError(f"{path} contains no item.")
    return items


def _parse_item(row: object, line: int) -> GeneralItem:
    """Return the item of one line. Raise ValueError if the line is not one."""
    if not isinstance(row, dict):
        raise ValueError("an item must be a JSON object")
    prompt_key = "prompt"
    if "question" in row and "prompt" not in row:
        prompt_key = "question"
        row = {
            "id": f"line {line}",
            "language": _guess_language(row["question"]),
            "kind": "question",
            "prompt": row["question"],
            "check": "contains",
            "arguments": {key: value for key, value in row.items() if key == "accept"},
        }
    if unknown := sorted(row.keys() - set(_KEYS)):
        raise ValueError(f"unknown key {unknown[0][:50]!a}; an item has the keys {', '.join(_KEYS)}")
    limits = {"id": _MAX_NAME_CHARACTERS, "language": 10, "kind": _MAX_NAME_CHARACTERS, "prompt": MAX_PROMPT_CHARACTERS}
    for key, limit in limits.items():
        value = row.get(key)
        if not isinstance(value, str) or not value.strip() or len(value) > limit:
            name = prompt_key if key == "prompt" else key
            raise ValueError(f"the field `{name}` must be a text of 1 to {limit:,} characters")
        if key != "prompt" and not value.isprintable():
            raise ValueError(f"the field `{key}` contains a control character")
    check = CHECKS.get(row["check"]) if isinstance(row.get("check"), str) else None
    if check is None:
        raise ValueError(f"the field `check` must be one of {', '.join(CHECKS)}")
    arguments = row.get("arguments", {})
    if not isinstance(arguments, dict):
        raise ValueError("the field `arguments` must be an object")
    try:
        json.dumps(row, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError:
        raise ValueError("contains half a surrogate pair, which is not a character") from None
    return GeneralItem(**{**{key: row[key] for key in _KEYS[:5]}, "arguments": check.read_arguments(arguments)})


def _guess_language(text: object) -> str:
    """Return `zh` for a text in a script without blanks, otherwise `en`."""
    return "zh" if isinstance(text, str) and 2 * len(EAST_ASIAN_LETTER.findall(text)) > len(text) else "en"
