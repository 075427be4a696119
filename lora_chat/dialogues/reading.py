"""Files -> dialogues; every line accounted for, every fault with its line."""

import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lora_chat.dialogues.dialogue import Dialogue, NotADialogue, make_dialogue
from lora_chat.errors import DataError

_SHOWN = 5


@dataclass(frozen=True)
class ReadingReport:
    """What became of a file's lines: lines = accepted + blank + refused."""

    path: str
    lines: int
    accepted: int
    blank: int
    refused: int
    reasons: tuple[str, ...]
    """The first refusals, each with file and line."""


def read_dialogues(path: str | Path, max_refused: int = 0) -> tuple[list[Dialogue], ReadingReport]:
    """Read JSON lines strictly: UTF-8, one object with `messages` a line, no repeated keys, no NaN.

    Raises DataError for a missing or empty file, or when more than `max_refused` lines are faulty.
    """
    path = Path(path)
    dialogues: list[Dialogue] = []
    reasons: list[str] = []
    lines = blank = 0
    for number, raw in read_lines(path):
        lines = number
        try:
            text = raw.decode("utf-8")
            if not text.strip():
                blank += 1
                continue
            dialogues.append(make_dialogue(parse_json(text), number))
        except UnicodeDecodeError as error:
            reasons.append(f"{path}:{number}: is not UTF-8 text (byte {error.start + 1} of the line)")
        except (NotADialogue, ValueError) as error:
            reasons.append(f"{path}:{number}: {error}")
    if len(reasons) > max_refused:
        raise DataError(_refusal(path, reasons, max_refused))
    if not dialogues:
        raise DataError(f"{path} holds no dialogue ({lines} lines, {blank} of them blank).")
    report = ReadingReport(str(path), lines, len(dialogues), blank, len(reasons), tuple(reasons[:_SHOWN]))
    return dialogues, report


def read_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """A file's lines with their numbers, split at line feeds only; raises DataError if it cannot be read."""
    try:
        with path.open("rb") as file:
            for number, raw in enumerate(file, 1):
                line = raw.removesuffix(b"\n").removesuffix(b"\r")
                yield number, line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
    except FileNotFoundError as error:
        raise DataError(f"There is no file {path}.") from error
    except OSError as error:
        raise DataError(f"Cannot read {path}: {error.strerror}.") from error


def parse_json(text: str) -> Any:
    """JSON as its standard has it; raises ValueError where Python's parser would look away."""
    try:
        return json.loads(text, object_pairs_hook=_without_repeats, parse_constant=_refuse_constant)
    except json.JSONDecodeError as error:
        raise ValueError(f"is not valid JSON: {error.msg} at column {error.colno}") from error
    except RecursionError as error:
        raise ValueError("is nested too deeply") from error


def split_dialogues(dialogues: Sequence[Dialogue], share: float, seed: int) -> tuple[list[Dialogue], list[Dialogue]]:
    """Hold out a share for validation, chosen by seed; both parts keep the file's order.

    Identical dialogues stay on one side, so that none is both trained and measured.
    Raises DataError if nothing would be left to train on.
    """
    groups: dict[tuple[object, ...], list[int]] = {}
    for index, dialogue in enumerate(dialogues):
        groups.setdefault(dialogue.messages, []).append(index)
    if len(groups) < 2:
        raise DataError("At least 2 different dialogues are needed: one to train on and one to measure with.")
    wanted = max(1, round(len(dialogues) * share))
    order = list(groups.values())
    random.Random(seed).shuffle(order)
    held: set[int] = set()
    for group in order[:-1]:
        if len(held) + len(group) <= wanted:
            held.update(group)
    if not held:  # every group is larger than the share; the smallest comes nearest
        smallest: list[int] = min(order, key=len)
        held.update(smallest)
    train = [d for i, d in enumerate(dialogues) if i not in held]
    return train, [d for i, d in enumerate(dialogues) if i in held]


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"gives {next(n for n in names if names.count(n) > 1)!r} twice")
    return result


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"holds {name}, which is not JSON")


def _refusal(path: Path, reasons: list[str], max_refused: int) -> str:
    count = f"{len(reasons)} line{'s' if len(reasons) > 1 else ''}"
    allowed = f" (data.max_refused allows {max_refused})" if max_refused else ""
    more = [f"... and {len(reasons) - _SHOWN} more"] if len(reasons) > _SHOWN else []
    return "\n".join(
        [
            f"{count} of {path} cannot be used{allowed}:",
            *reasons[:_SHOWN],
            *more,
            "Mend them, or leave up to N of them out with --set data.max_refused=N.",
        ]
    )
