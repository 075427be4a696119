"""`lora-chat completion`: print the script by which a shell completes the command line."""

import argparse
import re
from collections.abc import Iterator

from lora_chat.commands.completion_functions import (
    FILE,
    FOLDER,
    PARCEL,
    RECIPE,
    RUN,
    SETTING,
    SHELLS,
    THING,
    find_function,
    write_end,
    write_functions,
)
from lora_chat.system.console import print_result

COMPLETED_VALUES = {
    "RECIPE": RECIPE,
    "RUN": RUN,
    "RUN|PARCEL|ADAPTER": THING,
    "RUN|PARCEL|ADAPTER|BASE": THING,
    "[NAME=]THING": THING,
    "PARCEL": PARCEL,
    "FILE": FILE,
    "FILE:FUNCTION": FILE,
    "auto|all|off|FILE": FILE,
    "KEY": FILE,
    "SOCKET": FILE,
    "PYTHON": FILE,
    "DIR": FOLDER,
    "BASE": FOLDER,
    "SECTION.KEY=VALUE": SETTING,
    "evaluation.KEY=VALUE": SETTING,
}
"""What is listed for an argument, by its metavar; values of other metavars are free."""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `completion`."""
    parser.add_argument("shell", choices=SHELLS, help="the shell that runs the script")


def run(options: argparse.Namespace) -> None:
    """Print the script with which bash, zsh or fish completes commands, options, recipes, runs and settings."""
    print_result(write_script(options.shell).rstrip("\n"))


def write_script(shell: str) -> str:
    """Return the script for a shell. The same version of lora_chat always returns the same text."""
    import shtab

    from lora_chat.commands.parser import make_parser
    from lora_chat.commands.setting_names import list_setting_names
    from lora_chat.config.bundled_recipes import list_bundled_recipes
    from lora_chat.pipeline.clean import KIND_NAMES

    parser = make_parser()
    for action in iterate_actions(parser):
        if isinstance(action, argparse._SubParsersAction):
            action.help = "command"  # the help of lora_chat lists the commands itself, so the parser hides them
        metavar = action.metavar if isinstance(action.metavar, str) else ""
        if metavar in COMPLETED_VALUES:
            action.complete = find_function(COMPLETED_VALUES[metavar])  # type: ignore[attr-defined]  # read by shtab
        elif metavar == "KIND,KIND":
            action.choices = KIND_NAMES
        if metavar and action.choices is None:
            action.metavar = re.sub(r"\W+", " ", metavar).strip()  # zsh gives a colon a meaning
    settings = [f"{name}=" for name in list_setting_names()]
    recipes = [recipe.name for recipe in list_bundled_recipes()]
    script: str = shtab.complete(parser, shell, preamble=write_functions(shell, recipes, settings))
    return f"{script}\n{write_end(shell)}"


def iterate_actions(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    """Yield all arguments of a parser and of the parsers of its commands."""
    for action in parser._actions:
        yield action
        if isinstance(action, argparse._SubParsersAction):
            for sub in action.choices.values():
                yield from iterate_actions(sub)
