"""`lora-chat clean`: show and delete caches and old checkpoints."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lora_chat.commands.options import age_seconds
from lora_chat.errors import DiskError, UsageError
from lora_chat.system.console import display_path, format_bytes, is_terminal, print_json, print_message, print_result

if TYPE_CHECKING:
    from lora_chat.pipeline.clean import CleanEntry, CleanGroup

_HEAD = ("KIND", "SIZE", "TO DELETE", "CONTENT", "COMES BACK")
_RIGHT = (1, 2)
_MAX_CHARACTERS = 90
_PASSING_REASONS = ("not chosen", "used later")
"""Reasons of entries that the user did not choose, which need no line."""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `clean`."""
    parser.add_argument("--dry-run", action="store_true", help="show, delete nothing")
    parser.add_argument("--yes", action="store_true", help="delete without a question")
    parser.add_argument(
        "--only", metavar="KIND,KIND", help="delete only these kinds, such as dialogues,checkpoints (default: all)"
    )
    parser.add_argument(
        "--older-than", type=age_seconds, default=0.0, metavar="AGE", help="delete only what was last used before: 30d"
    )
    parser.add_argument("--runs", type=Path, metavar="DIR", help="folder of runs with old checkpoints (runs)")


def run(options: argparse.Namespace) -> None:
    """Show what caches and old checkpoints of finished runs need, and delete it. Results always stay."""
    from lora_chat.pipeline.clean import CleanChoice, delete_selected, find_cleanable

    kinds = _read_kinds(options.only)
    groups = find_cleanable(CleanChoice(kinds, options.older_than, options.runs))
    selected = sum(group.selected_size for group in groups)
    count = sum(len(group.selected) for group in groups)
    if not options.json:
        for line in _format_groups(groups):
            print_result(line)
    is_confirmed = bool(count) and not options.dry_run and (options.yes or _ask(selected))
    sizes, stayed = delete_selected(groups) if is_confirmed else ([group.size for group in groups], [])
    freed = sum(group.size for group in groups) - sum(sizes)
    if options.json:
        print_json(_as_dict(groups, sizes, stayed, freed, dry_run=options.dry_run))
    elif is_confirmed:
        for line in _format_freed(groups, sizes):
            print_result(line)
    _report(stayed, freed, selected, is_confirmed=is_confirmed)


def _read_kinds(text: str | None) -> tuple[str, ...]:
    """Return the kinds of `--only`; by default all. Raise UsageError with all names for an unknown one."""
    from lora_chat.pipeline.clean import KIND_NAMES

    if text is None:
        return KIND_NAMES
    names = tuple(part.strip() for part in text.split(","))
    unknown = next((name for name in names if name not in KIND_NAMES), None)
    if unknown is not None:
        raise UsageError(f"--only {unknown}: there is no such kind. Fix: name some of {', '.join(KIND_NAMES)}.")
    return names


def _ask(size: int) -> bool:
    """Ask in a terminal whether to delete. Raise UsageError elsewhere, because nobody could answer."""
    if not (is_terminal(sys.stdin) and is_terminal(sys.stderr)):
        raise UsageError(
            "Nothing was deleted, because there is no terminal to ask in. "
            "Fix: add --yes to delete, or --dry-run to show."
        )
    print_message(f"Delete {format_bytes(size)}? Type y and Enter; anything else deletes nothing.")
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def _format_groups(groups: "Sequence[CleanGroup]") -> list[str]:
    """Return the table of all kinds, why entries stay, and the size of the hub's cache."""
    from lora_chat.system.folder_size import measure_bytes
    from lora_chat.system.hub_client import find_hub_cache
    from lora_chat.system.text_table import align_columns

    rows = [
        (group.name, format_bytes(group.size), format_bytes(group.selected_size), group.content, group.comes_back)
        for group in groups
    ]
    lines = align_columns([_HEAD, *rows], right=_RIGHT, max_characters=_MAX_CHARACTERS)
    for group in groups:
        reasons = [entry.kept_because for entry in group.entries if entry.kept_because not in ("", *_PASSING_REASONS)]
        lines += [f"  {group.name}: {reasons.count(reason)} stay: {reason}" for reason in dict.fromkeys(reasons)]
    hub_cache = find_hub_cache()
    if size := measure_bytes(hub_cache):
        where = display_path(hub_cache)
        lines.append(f"The hub's cache is not touched: {format_bytes(size)} in {where}; delete there with: hf cache rm")
    return lines


def _format_freed(groups: "Sequence[CleanGroup]", sizes: Sequence[int]) -> list[str]:
    """Return the bytes of each kind before and after."""
    from lora_chat.system.text_table import align_columns

    rows = [
        (group.name, format_bytes(group.size), format_bytes(after))
        for group, after in zip(groups, sizes, strict=True)
        if group.size != after
    ]
    return align_columns([("KIND", "BEFORE", "AFTER"), *rows], right=(1, 2)) if rows else []


def _as_dict(
    groups: "Sequence[CleanGroup]",
    sizes: Sequence[int],
    stayed: "Sequence[tuple[CleanEntry, str]]",
    freed: int,
    *,
    dry_run: bool,
) -> dict[str, object]:
    """Return the result for JSON."""
    return {
        "dry_run": dry_run,
        "freed_bytes": freed,
        "kinds": [group.as_dict(after) for group, after in zip(groups, sizes, strict=True)],
        "stayed": [{"path": str(entry.path), "reason": reason} for entry, reason in stayed],
    }


def _report(stayed: "Sequence[tuple[CleanEntry, str]]", freed: int, selected: int, *, is_confirmed: bool) -> None:
    """Print what was freed. Raise DiskError if entries could not be deleted."""
    if not is_confirmed:
        print_message(f"Nothing was deleted; {format_bytes(selected)} can be.")
        return
    print_message(f"Freed {format_bytes(freed)}.")
    if stayed:
        entry, reason = stayed[0]
        more = f" and {len(stayed) - 1} more" if len(stayed) > 1 else ""
        raise DiskError(f"Not deleted: {entry.path} ({reason}){more}. Fix: run lora-chat clean again later.")
