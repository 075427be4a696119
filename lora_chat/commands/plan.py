"""`lora-chat plan`: estimate memory and time of a recipe before any weights load."""

import argparse
import shlex

from lora_chat.commands.options import RECIPE_HELP, add_settings
from lora_chat.errors import UsageError
from lora_chat.system.console import print_json, print_result

_MAX_CARDS, _MAX_DIGITS = 64, 4
"""Largest number of cards to compare, and of its digits."""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `plan`."""
    parser.add_argument("recipe", nargs="?", metavar="RECIPE", help=RECIPE_HELP)
    device = parser.add_mutually_exclusive_group()
    device.add_argument("--gpu", metavar="NAME", help="plan for this GPU, such as 'RTX 4090' (default: this machine)")
    device.add_argument("--memory", metavar="SIZE", help="plan for a GPU with this much memory, such as 12GiB")
    parser.add_argument(
        "--gpus",
        metavar="N",
        help="compare 1 to N of these GPUs in one machine: memory of each, time, and whether a second one pays off",
    )
    parser.add_argument(
        "--history",
        action="store_true",
        help="compare the estimates of finished runs with their measured time and memory",
    )
    add_settings(parser)


def run(options: argparse.Namespace) -> None:
    """Estimate, before any weights load, whether a recipe fits, how long it takes, and what to change."""
    from lora_chat.config.load import read_recipe

    if options.history:
        from lora_chat.pipeline.estimate_history import format_history, read_history
        from lora_chat.system.user_path import expand_user_path

        folder = read_recipe(options.recipe, options.set).output.directory if options.recipe else "runs"
        records = read_history(expand_user_path(folder, "output.directory: "))
        print_json(records) if options.json else print_result(format_history(records))
        return
    if options.recipe is None:
        raise UsageError("No recipe is given. Fix: lora-chat plan quickstart")
    cards = None if options.gpus is None else _parse_card_count(options.gpus)
    recipe = read_recipe(options.recipe, options.set)
    from lora_chat.pipeline.estimate import estimate_cards, estimate_recipe
    from lora_chat.planning.format import format_estimate

    if cards is not None:
        from lora_chat.planning.card_advice import format_card_table

        table = estimate_cards(recipe, options.gpu, options.memory, cards)
        estimate = table.rows[0].estimate
        if options.json:
            print_json(estimate.as_dict() | {"cards": table.as_dict()})
        else:
            print_result(f"{format_estimate(estimate)}\n\n{format_card_table(table, _format_command(options))}")
        return
    estimate = estimate_recipe(recipe, options.gpu, options.memory)
    print_json(estimate.as_dict()) if options.json else print_result(format_estimate(estimate))


def _parse_card_count(text: str) -> int:
    """Return a number of cards. Raise UsageError for any other text."""
    if not (text.isascii() and text.isdigit() and len(text) <= _MAX_DIGITS and 1 <= int(text) <= _MAX_CARDS):
        raise UsageError(f"--gpus {text[:40]}: not a number of cards from 1 to {_MAX_CARDS}. Fix: --gpus 2")
    return int(text)


def _format_command(options: argparse.Namespace) -> str:
    """Format the command line of `sft` for the recipe and its settings."""
    settings = " ".join(f"--set {shlex.quote(setting)}" for setting in options.set or ())
    return f"sft {shlex.quote(options.recipe)} {settings}".rstrip()
