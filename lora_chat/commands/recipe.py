"""`lora-chat recipe`: print a recipe with all its settings."""

import argparse

from lora_chat.commands.options import RECIPE_HELP, add_settings
from lora_chat.errors import UsageError
from lora_chat.system.console import print_json, print_result


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `recipe`."""
    parser.add_argument("recipe", metavar="RECIPE", nargs="?", help=RECIPE_HELP)
    parser.add_argument("--schema", action="store_true", help="print the JSON schema of recipes, for editors")
    add_settings(parser)


def run(options: argparse.Namespace) -> None:
    """Print the resolved recipe, or the JSON schema of recipes."""
    if options.schema:
        from lora_chat.config.recipe import Recipe

        print_json(Recipe.model_json_schema(), indent=2)
        return
    if options.recipe is None:
        raise UsageError("No recipe is given. Fix: lora-chat recipe quickstart")
    from lora_chat.config.load import dump_recipe, format_recipe_yaml, read_recipe

    recipe = read_recipe(options.recipe, options.set)
    print_json(dump_recipe(recipe)) if options.json else print_result(format_recipe_yaml(recipe), end="")
