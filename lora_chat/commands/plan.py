"""`lora-chat plan`: estimate memory and time of a recipe before any weights load."""

import argparse

from lora_chat.commands.options import RECIPE_HELP, add_settings
from lora_chat.errors import UsageError
from lora_chat.system.console import print_json, print_result


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `plan`."""
    parser.add_argument("recipe", nargs="?", metavar="RECIPE", help=RECIPE_HELP)
    device = parser.add_mutually_exclusive_group()
    device.add_argument("--gpu", metavar="NAME", help="plan for this GPU, such as 'RTX 4090' (default: this machine)")
    device.add_argument("--memory", metavar="SIZE", help="plan for a GPU with this much memory, such as 12GiB")
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
        raise UsageError("No recipe is given. Fix: lora-chat plan recipes/quickstart.yaml")
    recipe = read_recipe(options.recipe, options.set)
    from lora_chat.pipeline.estimate import estimate_recipe
    from lora_chat.planning.format import format_estimate

    estimate = estimate_recipe(recipe, options.gpu, options.memory)
    print_json(estimate.as_dict()) if options.json else print_result(format_estimate(estimate))
