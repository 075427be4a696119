"""`lora-chat recipes`: list the recipes that come with lora_chat."""

import argparse
from pathlib import Path

from lora_chat.system.console import print_json, print_result


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `recipes`."""
    parser.add_argument(
        "--copy", type=Path, metavar="DIR", help="copy all recipes and their data into a new folder, to change them"
    )


def run(options: argparse.Namespace) -> None:
    """List the recipes that come with lora_chat, one line each; their names work in place of files."""
    from lora_chat.config.bundled_recipes import copy_bundled_recipes, list_bundled_recipes

    if options.copy:
        copy_bundled_recipes(options.copy)
    recipes = list_bundled_recipes()
    if options.json:
        print_json([{"name": recipe.name, "file": str(recipe.path), "summary": recipe.summary} for recipe in recipes])
        return
    width = max(len(recipe.name) for recipe in recipes)
    for recipe in recipes:
        print_result(f"{recipe.name.ljust(width)}  {recipe.summary}")
