"""`lora-chat diff`: show how two runs differ."""

import argparse
from typing import TYPE_CHECKING

from lora_chat.system.console import print_json, print_message, print_result

if TYPE_CHECKING:
    from lora_chat.pipeline.diff_runs import RunDiff

_THING_HELP = "a run folder, or a recipe, of which the settings are compared"


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `diff`."""
    parser.add_argument("first", metavar="RUN", help=_THING_HELP)
    parser.add_argument("second", metavar="RUN", help=_THING_HELP)


def run(options: argparse.Namespace) -> None:
    """Show settings, data, base, versions, machine and figures of two runs that differ."""
    from lora_chat.pipeline.diff_runs import diff_runs

    difference = diff_runs(options.first, options.second)
    if options.json:
        print_json(difference.as_dict())
        return
    for line in _format_diff(difference):
        print_result(line)
    for note in difference.notes:
        print_message(note)


def _format_diff(difference: "RunDiff") -> list[str]:
    """Return a table with the title of each section above its rows; equal values are only counted."""
    from lora_chat.system.text_table import align_columns

    rows: list[tuple[str, ...]] = [("", difference.first, difference.second, "")]
    titles: list[tuple[int, str]] = []
    for section in difference.sections:
        total = section.equal + len(section.differences)
        if total:
            count = f"{len(section.differences)} of {total:,} differ" if section.differences else f"all {total:,} equal"
            titles.append((len(rows), f"{section.title}: {count}"))
        rows += [(f"  {d.label}", *d.texts, d.note) for d in section.differences]
    lines: list[str] = []
    for number, line in enumerate(align_columns(rows)):
        lines += [title for start, title in titles if start == number]
        lines += [line] if len(rows) > 1 else []
    return lines + [title for start, title in titles if start == len(rows)]
