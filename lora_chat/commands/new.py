"""`lora-chat new`: write a recipe for a file of data and a device."""

import argparse

from lora_chat.commands.options import add_settings
from lora_chat.system.console import print_json, print_message, print_result

TASK_NAMES = (
    *("pretraining", "story", "tools", "json", "classification", "math", "reading", "translation", "summary"),
    *("questions", "service", "chat", "instructions"),
)
"""Names of the tasks; the table is in pipeline/new/task_kinds.py, which help does not import."""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `new`."""
    parser.add_argument("name", nargs="?", metavar="NAME", help="name of the recipe (default: that of the data)")
    parser.add_argument("--data", metavar="FILE", help="your data: a file, a folder or a glob, as in data.train")
    device = parser.add_mutually_exclusive_group()
    device.add_argument(
        "--gpu", metavar="NAME", help="write it for this GPU, such as 'RTX 3060' (default: this machine)"
    )
    device.add_argument("--memory", metavar="SIZE", help="write it for a GPU with this much memory, such as 12GiB")
    parser.add_argument("--base", metavar="BASE", help="use this base: a hub id, a folder or an embedded base")
    parser.add_argument(
        "--task",
        choices=TASK_NAMES,
        metavar="TASK",
        help=f"the task of the data, or without --data an example of it: {', '.join(TASK_NAMES)}",
    )
    parser.add_argument("--yes", action="store_true", help="ask nothing and take the proposals")
    add_settings(parser)


def run(options: argparse.Namespace) -> None:
    """Write a short commented recipe for your data and your card, with a base that fits."""
    from lora_chat.pipeline.new.format import TextView, format_new_recipe
    from lora_chat.pipeline.new.inputs import NewRecipeRequest
    from lora_chat.pipeline.new.new_recipe import make_new_recipe
    from lora_chat.pipeline.new.user_questions import UserQuestions, is_answered_by_user

    request = NewRecipeRequest(
        *(options.name, options.data, options.gpu, options.memory, options.base, options.task, tuple(options.set))
    )
    questions = UserQuestions(not options.json and not options.yes and is_answered_by_user())
    recipe = make_new_recipe(request, questions, TextView(print_message if options.json else print_result))
    print_json(recipe.as_dict()) if options.json else print_result(format_new_recipe(recipe))
