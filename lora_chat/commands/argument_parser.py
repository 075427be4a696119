"""An argument parser whose messages are short, suggest the nearest name, and are safe to print."""

import argparse
import difflib
import sys
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

from lora_chat.errors import UsageError
from lora_chat.system.console import print_error, print_message, print_result
from lora_chat.system.sanitize import sanitize_line

if TYPE_CHECKING:
    from _typeshed import SupportsWrite

COMMAND = "COMMAND"
OTHER_WORDS = {
    "audit": ("scan",),
    "chat": ("talk", "ask"),
    "clean": ("cleanup", "prune", "purge"),
    "diff": ("compare",),
    "doctor": ("check", "info", "env", "status"),
    "eval": ("evaluate", "test", "benchmark"),
    "export": ("convert", "gguf", "ollama", "quantize"),
    "generate": ("infer", "inference", "complete", "predict"),
    "merge": ("fuse", "blend"),
    "new": ("init", "create"),
    "plan": ("estimate", "memory"),
    "pull": ("download",),
    "push": ("upload", "publish"),
    "runs": ("list", "ls", "show"),
    "serve": ("server", "api"),
    "sft": ("train", "finetune", "fine-tune", "tune", "run", "resume"),
    "--help": ("help",),
    "--version": ("version",),
}
"""Words that users type for a command, because other programs call it that."""
_NO_COMMAND = (
    "A command is missing. First steps: lora-chat recipes, then lora-chat sft quickstart, then lora-chat runs."
)
_MAX_CHARACTERS = 100
"""Longest part of an argument that a message repeats."""


class Parser(argparse.ArgumentParser):
    """An argument parser that prints through `system.console`, because help and errors quote untrusted arguments."""

    example = ""
    """A command line that works, for messages about missing arguments."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.color = False
        """Whether messages are coloured; false, because the console would print Python 3.14's colours as escapes."""

    def _print_message(self, message: str, file: "SupportsWrite[str] | None" = None) -> None:
        if message and file is sys.stdout:
            print_result(message, end="")
        elif message:
            print_message(message.rstrip("\n"))

    def error(self, message: str) -> NoReturn:
        """Print an error with an example, and end with the exit code of wrong usage."""
        example = f"Example: {self.example}\n" if self.example else ""
        print_error(f"{message}\n{example}Fix: {self.prog} --help")
        sys.exit(UsageError.exit_code)

    def parse_args(  # type: ignore[override]  # the command line needs no other namespace
        self, args: Sequence[str] | None = None
    ) -> argparse.Namespace:
        """Parse a command line. Exit with a suggestion if it has an unknown option or no command."""
        options, unknown = self.parse_known_args(args)
        commands = self._find_commands()
        command = getattr(options, "command", None)
        if command is None:
            self.error(f"There is no option {_show(unknown[0])}." if unknown else _NO_COMMAND)
        if unknown:
            parser = commands[command]
            parser.error(_explain_unknown(command, parser, unknown))
        return options

    def _find_commands(self) -> "dict[str, Parser]":
        """Return the parsers of the commands by their names."""
        for action in self._actions:
            if isinstance(action, argparse._SubParsersAction):
                return dict(action.choices)
        return {}

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        """Raise ArgumentError with the nearest choice for a value that is not a choice."""
        if action.choices is None or value in action.choices:
            return
        choices = [str(choice) for choice in action.choices]
        if isinstance(action, argparse._SubParsersAction):
            self.error(f"There is no command {_show(value)}.{_suggest_command(str(value), choices)}")
        near = _suggest(str(value), choices)
        raise argparse.ArgumentError(action, f"there is no {_show(value)}.{near} Choices: {', '.join(choices)}")


def _explain_unknown(command: str, parser: Parser, unknown: Sequence[str]) -> str:
    """Return the message on arguments that a command does not have."""
    option = next((argument for argument in unknown if argument.startswith("-")), None)
    if option is None:
        return f"{command} has no argument for {_show(unknown[0])}."
    name = option.partition("=")[0]
    options = [text for action in parser._actions for text in action.option_strings]
    hint = _suggest_setting(name) if "--set" in options else ""
    return f"{command} has no option {_show(name)}.{hint or _suggest(name, options)}"


def _suggest_command(word: str, commands: Collection[str]) -> str:
    """Return a question with the command that a user may mean."""
    meant = next((command for command, words in OTHER_WORDS.items() if word.lower() in words), None)
    return f" Did you mean lora-chat {meant}?" if meant else _suggest(word, commands)


def _suggest_setting(option: str) -> str:
    """Return the setting of a recipe with the name of an unknown option, such as `--epochs`."""
    from lora_chat.commands.setting_names import list_setting_names

    key = option.lstrip("-").replace("-", "_")
    names = [name for name in list_setting_names() if name.rpartition(".")[2] == key]
    return f" It is a setting: --set {names[0]}=VALUE" if names else ""


def _suggest(word: str, names: Collection[str]) -> str:
    """Return a question with the nearest name, or nothing if none is near."""
    near = difflib.get_close_matches(word, names, n=1)
    return f" Did you mean {near[0]}?" if near else ""


def _show(value: object) -> str:
    return sanitize_line(str(value), _MAX_CHARACTERS)
