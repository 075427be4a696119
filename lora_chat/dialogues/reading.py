"""Files -> dialogues; every line accounted for, every fault with its line."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from lora_chat.dialogues.dialogue import Dialogue, NotADialogue
from lora_chat.dialogues.files import RawRow, find_files, read_rows
from lora_chat.dialogues.formats import FORMATS, recognise, to_messages
from lora_chat.dialogues.messages import make_dialogue
from lora_chat.errors import DataError
from lora_chat.planning.recipe import DataFormat

_SHOWN = 5


@dataclass(frozen=True)
class ReadingReport:
    """What became of the lines of all files: lines = accepted + blank + refused."""

    files: tuple[tuple[str, str], ...]
    """Every file with the format it is in."""
    lines: int
    accepted: int
    blank: int
    refused: int
    reasons: tuple[str, ...]
    """The first refusals, each with file and line."""


def read_dialogues(
    names: str | Path | tuple[str, ...],
    skip_bad: int = 0,
    form: DataFormat | None = None,
    columns: Mapping[str, str] | None = None,
) -> tuple[list[Dialogue], ReadingReport]:
    """Read files, folders and globs strictly, in `form` or in the format that each file's first row is in.

    Raises DataError for a missing or empty file, or when more than `skip_bad` lines are faulty.
    """
    paths = find_files(str(names) if isinstance(names, Path) else names)
    dialogues: list[Dialogue] = []
    reasons: list[str] = []
    files: list[tuple[str, str]] = []
    lines = blank = 0
    for path in paths:
        found = form or ("columns" if columns else None)
        for row in read_rows(path, tuple((columns or {}).values())):
            lines += 1
            if row.blank:
                blank += 1
                continue
            try:
                own = None if row.fault else recognise(row.value)
                found = found or own
                dialogues.append(_read_row(row, own, found, path, columns, forced=form is not None))
            except NotADialogue as error:
                reasons.append(f"{path}:{row.line}: {error}")
        files.append((str(path), found or "unknown"))
    shown = str(paths[0]) if len(paths) == 1 else f"{paths[0]} and {len(paths) - 1} more"
    if len(reasons) > skip_bad:
        raise DataError(_refusal(shown, reasons, skip_bad))
    if not dialogues:
        raise DataError(f"{shown} holds no dialogue ({lines} lines, {blank} of them blank).")
    report = ReadingReport(tuple(files), lines, len(dialogues), blank, len(reasons), tuple(reasons[:_SHOWN]))
    return dialogues, report


def _read_row(
    row: RawRow,
    own: DataFormat | None,
    found: DataFormat | None,
    path: Path,
    columns: Mapping[str, str] | None,
    *,
    forced: bool,
) -> Dialogue:
    if row.fault:
        raise NotADialogue(row.fault)
    if own and found and own != found and not forced and not columns:
        raise NotADialogue(f"is in the format {own}, where the file began with {found}")
    if found is None and isinstance(row.value, Mapping):
        keys = ", ".join(ascii(key) for key in list(row.value)[:8]) or "none"
        known = ", ".join(name for name in FORMATS if name != "columns")
        raise NotADialogue(f"has no `messages` and is in none of the formats {known} (its keys: {keys})")
    value = row.value if found is None else to_messages(row.value, found, columns)
    return replace(make_dialogue(value, row.line), path=str(path))


def split_dialogues(dialogues: Sequence[Dialogue], share: float, seed: int) -> tuple[list[Dialogue], list[Dialogue]]:
    """Hold out a share for validation, chosen by seed; both parts keep the file's order.

    Identical dialogues stay on one side, so that none is both trained and measured.
    Raises DataError if nothing would be left to train on.
    """
    groups: dict[object, list[int]] = {}
    for index, dialogue in enumerate(dialogues):
        groups.setdefault((dialogue.messages, dialogue.tools), []).append(index)
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


def _refusal(path: str, reasons: list[str], skip_bad: int) -> str:
    count = f"{len(reasons)} line{'s' if len(reasons) > 1 else ''}"
    allowed = f" (data.skip_bad allows {skip_bad})" if skip_bad else ""
    more = [f"... and {len(reasons) - _SHOWN} more"] if len(reasons) > _SHOWN else []
    return "\n".join(
        [
            f"{count} of {path} cannot be used{allowed}:",
            *reasons[:_SHOWN],
            *more,
            "Mend them, or leave up to N of them out with --set data.skip_bad=N.",
        ]
    )
