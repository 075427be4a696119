"""The parser of the command line, built from the table of commands."""

import argparse
import shutil
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import lora_chat.commands.audit as audit
import lora_chat.commands.chat as chat
import lora_chat.commands.clean as clean
import lora_chat.commands.completion as completion
import lora_chat.commands.data as data
import lora_chat.commands.diff as diff
import lora_chat.commands.doctor as doctor
import lora_chat.commands.eval as evaluate
import lora_chat.commands.export as export
import lora_chat.commands.fetch_base as fetch_base
import lora_chat.commands.generate as generate
import lora_chat.commands.judge as judge
import lora_chat.commands.merge as merge
import lora_chat.commands.new as new
import lora_chat.commands.pack as pack
import lora_chat.commands.plan as plan
import lora_chat.commands.pull as pull
import lora_chat.commands.push as push
import lora_chat.commands.recipe as recipe
import lora_chat.commands.recipes as recipes
import lora_chat.commands.report as report
import lora_chat.commands.runs as runs
import lora_chat.commands.serve as serve
import lora_chat.commands.sft as sft
import lora_chat.commands.verify as verify
from lora_chat import __version__
from lora_chat.commands.argument_parser import COMMAND, Parser

_MIN_HELP_WIDTH = 40


class Command(Protocol):
    """A module of this package. The docstring of its function `run` is the help text of the command."""

    def add_options(self, parser: argparse.ArgumentParser) -> None:
        """Add the arguments of this command."""

    def run(self, options: argparse.Namespace) -> None:
        """Execute the command. Heavy imports belong in this function, so that help answers at once."""


@dataclass(frozen=True)
class CommandEntry:
    """A command in the help text."""

    module: Command
    example: str
    """One command line that works after the command lines of the entries before it, without `lora-chat`."""


@dataclass(frozen=True)
class CommandGroup:
    """Commands for one purpose, in the order in which a user needs them."""

    title: str
    entries: Mapping[str, CommandEntry]


COMMAND_GROUPS = (
    CommandGroup(
        "prepare a run",
        {
            "new": CommandEntry(new, "new mine --data my.jsonl"),
            "recipes": CommandEntry(recipes, "recipes"),
            "recipe": CommandEntry(recipe, "recipe quickstart"),
            "data": CommandEntry(data, "data quickstart --show 3"),
            "audit": CommandEntry(audit, "audit quickstart"),
            "plan": CommandEntry(plan, 'plan quickstart --gpu "RTX 3060"'),
        },
    ),
    CommandGroup(
        "train",
        {
            "sft": CommandEntry(sft, "sft quickstart --set training.epochs=2"),
        },
    ),
    CommandGroup(
        "talk to the result",
        {
            "chat": CommandEntry(chat, "chat runs/quickstart-1"),
            "generate": CommandEntry(generate, 'generate runs/quickstart-1 "When do you open?" --chat'),
            "serve": CommandEntry(serve, "serve runs/quickstart-1 --port 8000"),
        },
    ),
    CommandGroup(
        "measure and compare",
        {
            "eval": CommandEntry(evaluate, "eval runs/quickstart-1 --data my.jsonl"),
            "judge": CommandEntry(judge, "judge runs/quickstart-1"),
            "runs": CommandEntry(runs, "runs"),
            "diff": CommandEntry(diff, "diff runs/quickstart-1 runs/quickstart-2"),
            "report": CommandEntry(report, "report runs/quickstart-1 runs/quickstart-2"),
        },
    ),
    CommandGroup(
        "merge, export and share",
        {
            "merge": CommandEntry(merge, "merge runs/quickstart-1 --to merged"),
            "export": CommandEntry(export, "export runs/quickstart-1 --to gguf"),
            "pack": CommandEntry(pack, "pack runs/quickstart-1 --out pottery.lorachat"),
            "verify": CommandEntry(verify, "verify pottery.lorachat --again"),
            "push": CommandEntry(push, "push pottery.lorachat OWNER/pottery"),
            "pull": CommandEntry(pull, "pull OWNER/pottery"),
        },
    ),
    CommandGroup(
        "this machine",
        {
            "doctor": CommandEntry(doctor, "doctor"),
            "clean": CommandEntry(clean, "clean --dry-run"),
            "fetch-base": CommandEntry(fetch_base, "fetch-base"),
            "completion": CommandEntry(completion, "completion bash"),
        },
    ),
)
"""All commands, in the order of the help text."""
COMMANDS: dict[str, Command] = {name: entry.module for group in COMMAND_GROUPS for name, entry in group.entries.items()}


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the whole command line."""
    parser = Parser(
        prog="lora-chat",
        usage="lora-chat COMMAND ... [--json] [--verbose]",
        description="Fine-tune a chat model with LoRA on the computer you have, and know what it learned.",
        epilog=_format_groups(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"lora-chat {__version__}")
    parser.example = "lora-chat sft quickstart"
    commands = parser.add_subparsers(prog=parser.prog, metavar=COMMAND, help=argparse.SUPPRESS)
    for group in COMMAND_GROUPS:
        for name, entry in group.entries.items():
            summary = entry.module.run.__doc__
            example = f"lora-chat {entry.example}"
            sub = commands.add_parser(
                name, help=summary, description=summary, epilog=f"Example: {example}", allow_abbrev=False
            )
            sub.example = example
            sub.add_argument(
                "--json", action="store_true", help="print results as JSON on stdout, everything else on stderr"
            )
            sub.add_argument("--verbose", action="store_true", help="show the messages of the libraries")
            sub.set_defaults(execute=entry.module.run, command=name)
            entry.module.add_options(sub)
    return parser


def _format_groups() -> str:
    """Return the list of all commands by group, with their summaries, for the width of this terminal."""
    width = max(_MIN_HELP_WIDTH, shutil.get_terminal_size().columns - 2)
    indent = 4 + max(map(len, COMMANDS))
    parts = []
    for group in COMMAND_GROUPS:
        parts.append(f"{group.title}:")
        for name, entry in group.entries.items():
            summary = " ".join((entry.module.run.__doc__ or "").split())
            first = f"  {name}".ljust(indent)
            parts.append(textwrap.fill(summary, width, initial_indent=first, subsequent_indent=" " * indent))
        parts.append("")
    return "\n".join([*parts, "Options and an example of a command: lora-chat COMMAND --help"])
