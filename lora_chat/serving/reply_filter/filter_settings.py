"""What a filter of replies looks for, what happens to it, and which values are allowed."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from lora_chat.config.audit import FINDING_KINDS, FindingKind, is_redactable
from lora_chat.errors import UsageError

FilterMode = Literal["redact", "block"]
FILTER_MODES: tuple[FilterMode, ...] = get_args(FilterMode)
FILTER_KINDS: tuple[FindingKind, ...] = tuple(kind for kind in FINDING_KINDS if is_redactable(kind))
"""Kinds of the audit that can be replaced by marks: secrets, possible secrets and personal data."""
_MAX_ALLOWED_VALUES, _MAX_ALLOWED_BYTES = 10_000, 1 << 20
_SEPARATORS = re.compile(r"[ ./()-]")


@dataclass(frozen=True)
class FilterSettings:
    """The settings of all reply filters of a server."""

    mode: FilterMode = "redact"
    """`redact` replaces each find by a mark, and `block` ends the reply before the first one."""
    kinds: frozenset[FindingKind] = frozenset(FILTER_KINDS)
    allowed: frozenset[str] = frozenset()
    """Values that are not findings, such as the address of a help desk, in the form of `comparable_value`."""

    def is_allowed(self, value: str) -> bool:
        """Return whether a value that was found is on the list of allowed values."""
        return bool(self.allowed) and comparable_value(value) in self.allowed


def comparable_value(value: str) -> str:
    """Return an address in lower case and a number without its separators; any other value is returned unchanged."""
    if "@" in value:
        return value.lower()
    without_separators = _SEPARATORS.sub("", value)
    return without_separators if without_separators.lstrip("+").isdigit() else value


def make_filter_settings(mode: str, kinds: Iterable[str] = (), allowed: Iterable[str] = ()) -> FilterSettings:
    """Return checked settings; no kinds means all of them. Raises UsageError for an unknown mode or kind."""
    names = tuple(kinds) or FILTER_KINDS
    unknown = next((name for name in names if name not in FILTER_KINDS), None)
    if unknown is not None:
        raise UsageError(f"Unknown kind of finding: {unknown!r}. Fix: choose from {', '.join(FILTER_KINDS)}.")
    chosen_mode = next((known for known in FILTER_MODES if known == mode), None)
    if chosen_mode is None:
        raise UsageError(f"Unknown filter: {mode!r}. Fix: choose from {', '.join(FILTER_MODES)}.")
    return FilterSettings(
        chosen_mode,
        frozenset(kind for kind in FILTER_KINDS if kind in names),
        frozenset(map(comparable_value, allowed)),
    )


def read_allowed_values(path: Path) -> frozenset[str]:
    """Return the values of a text file with one value a line; empty lines and lines with `#` first are left out."""
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_ALLOWED_BYTES + 1)
        lines = [line.strip() for line in data.decode("utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"Cannot read the allowed values: {path} ({error}). Fix: give a UTF-8 text file.") from error
    values = frozenset(comparable_value(line) for line in lines if line and not line.startswith("#"))
    if len(data) > _MAX_ALLOWED_BYTES or len(values) > _MAX_ALLOWED_VALUES:
        raise UsageError(
            f"Too many allowed values: {path} has more than {_MAX_ALLOWED_VALUES:,} or 1 MiB. Fix: shorten the list."
        )
    return values
