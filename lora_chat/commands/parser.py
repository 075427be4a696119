"""The parser of the command line, built from the table of commands."""

import argparse
import sys
from typing import TYPE_CHECKING, Any, Protocol

import lora_chat.commands.audit as audit
import lora_chat.commands.chat as chat
import lora_chat.commands.data as data
import lora_chat.commands.doctor as doctor
import lora_chat.commands.eval as evaluate
import lora_chat.commands.export as export
import lora_chat.commands.generate as generate
import lora_chat.commands.judge as judge
import lora_chat.commands.merge as merge
import lora_chat.commands.pack as pack
import lora_chat.commands.plan as plan
import lora_chat.commands.pull as pull
import lora_chat.commands.push as push
import lora_chat.commands.recipe as recipe
import lora_chat.commands.report as report
import lora_chat.commands.serve as serve
import lora_chat.commands.sft as sft
import lora_chat.commands.verify as verify
from lora_chat import __version__
from lora_chat.system.console import print_message, print_result

if TYPE_CHECKING:
    from _typeshed import SupportsWrite


class Command(Protocol):
    """A module of this package. The docstring of its function `run` is the help text of the command."""

    def add_options(self, parser: argparse.ArgumentParser) -> None:
        """Add the arguments of this command."""

    def run(self, options: argparse.Namespace) -> None:
        """Execute the command. Heavy imports belong in this function, so that help answers at once."""


COMMANDS: dict[str, Command] = {
    "sft": sft,
    "plan": plan,
    "data": data,
    "audit": audit,
    "chat": chat,
    "generate": generate,
    "serve": serve,
    "eval": evaluate,
    "judge": judge,
    "report": report,
    "merge": merge,
    "export": export,
    "pack": pack,
    "verify": verify,
    "push": push,
    "pull": pull,
    "recipe": recipe,
    "doctor": doctor,
}


class Parser(argparse.ArgumentParser):
    """An argument parser that prints through `system.console`, because help and errors quote untrusted arguments."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.color = False
        """Whether messages are coloured; false, because the console would print Python 3.14's colours as escapes."""

    def _print_message(self, message: str, file: "SupportsWrite[str] | None" = None) -> None:
        if message and file is sys.stdout:
            print_result(message, end="")
        elif message:
            print_message(message.rstrip("\n"))


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the whole command line."""
    parser = Parser(
        prog="lora-chat",
        description="Fine-tune a chat model with LoRA on the computer you have, and know what it learned.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"lora-chat {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    for name, command in COMMANDS.items():
        summary = command.run.__doc__
        sub = commands.add_parser(name, help=summary, description=summary, allow_abbrev=False)
        sub.add_argument(
            "--json", action="store_true", help="print results as JSON on stdout, everything else on stderr"
        )
        sub.add_argument("--verbose", action="store_true", help="show the messages of the libraries")
        sub.set_defaults(execute=command.run, command=name)
        command.add_options(sub)
    return parser
