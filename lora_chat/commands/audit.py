"""`lora-chat audit`: search the data of a recipe for secrets, personal data and other problems."""

import argparse
from pathlib import Path

from lora_chat.commands.options import RECIPE_HELP, add_settings, add_start_consent
from lora_chat.errors import RefusedDataError
from lora_chat.system.console import print_json, print_result


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `audit`."""
    parser.add_argument("recipe", metavar="RECIPE", help=RECIPE_HELP)
    parser.add_argument(
        "--to",
        type=Path,
        metavar="FILE",
        help="write the training dialogues to FILE, redacted and without dropped dialogues if the recipe says so",
    )
    add_start_consent(parser)
    add_settings(parser)


def run(options: argparse.Namespace) -> None:
    """Search the data of a recipe for secrets, personal data, duplicates, leaks and other problems."""
    from lora_chat.config.load import read_recipe

    recipe = read_recipe(options.recipe, options.set)
    from lora_chat.pipeline.inspect_data import audit_recipe

    report, refuses = audit_recipe(recipe, options.to, as_json=options.json, accept_template=options.accept_template)
    print_json(report) if isinstance(report, dict) else print_result(report)
    if refuses:
        raise RefusedDataError(
            "The recipe refuses these findings, so `sft` would stop. "
            "Fix: change the data or the section `audit` of the recipe."
        )
