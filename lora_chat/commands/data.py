"""`lora-chat data`: show the data of a recipe as training sees it."""

import argparse

from lora_chat.commands.options import RECIPE_HELP, add_settings, add_start_consent, non_negative_int
from lora_chat.system.console import print_json, print_result


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `data`."""
    parser.add_argument("recipe", metavar="RECIPE", help=RECIPE_HELP)
    parser.add_argument(
        "--show", type=non_negative_int, default=0, metavar="N", help="show N dialogues and mark the tokens with loss"
    )
    add_start_consent(parser)
    add_settings(parser)


def run(options: argparse.Namespace) -> None:
    """Show the data of a recipe: the fate of every line, token counts, and the tokens with loss."""
    from lora_chat.config.load import read_recipe

    recipe = read_recipe(options.recipe, options.set)
    from lora_chat.pipeline.inspect_data import inspect_data

    summary = inspect_data(recipe, options.show, as_json=options.json, accept_template=options.accept_template)
    print_json(summary) if isinstance(summary, dict) else print_result(summary)
