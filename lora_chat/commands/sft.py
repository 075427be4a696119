"""`lora-chat sft`: fine-tune a base on chat dialogues."""

import argparse
import os
import shlex
from pathlib import Path

from lora_chat.commands.options import RECIPE_HELP, add_settings, add_start_consent
from lora_chat.errors import UsageError
from lora_chat.processes.rank import read_rank
from lora_chat.system.console import print_json, print_message
from lora_chat.system.signals import signal_number


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `sft`."""
    parser.add_argument("recipe", metavar="RECIPE", help=RECIPE_HELP)
    parser.add_argument(
        "--resume", nargs="?", const="", metavar="RUN", help="continue an interrupted run (default: the newest)"
    )
    parser.add_argument(
        "--accept-change",
        action="append",
        default=[],
        metavar="FIELD",
        help="with --resume: continue although FIELD changed, such as training.epochs",
    )
    parser.add_argument(
        "--adopt", action="store_true", help="with --resume: sign a run that you did not make as your own"
    )
    add_start_consent(parser)
    add_settings(parser)


def run(options: argparse.Namespace) -> None:
    """Fine-tune a base with the settings of a recipe."""
    from lora_chat.config.load import read_recipe

    if read_rank(os.environ).size > 1:
        raise UsageError("Several processes cannot train together yet. Fix: start `lora-chat sft` without torchrun.")
    recipe = read_recipe(options.recipe, options.set)
    if options.accept_change and options.resume is None:
        raise UsageError(
            "--accept-change needs --resume, because only a continued run can have changed. Fix: add --resume."
        )
    if options.adopt and options.resume is None:
        raise UsageError("--adopt needs --resume, because a new run is always your own. Fix: leave --adopt out.")
    from lora_chat.pipeline.fine_tune import fine_tune
    from lora_chat.pipeline.resume import ResumeRequest
    from lora_chat.pipeline.run_status import RunProgress
    from lora_chat.pipeline.sft_result import format_result, suggest_next_command
    from lora_chat.runs.run_folder import RunFolder

    command = ["lora-chat", "sft", options.recipe, *(part for setting in options.set for part in ("--set", setting))]
    command += ["--accept-template"] if options.accept_template else []
    progress = RunProgress(command=shlex.join(command))
    resume = None
    if options.resume is not None:
        resume = ResumeRequest(options.resume or None, options.accept_change, options.adopt)
    try:
        result = fine_tune(recipe, progress, resume, accept_template=options.accept_template)
    except KeyboardInterrupt as error:
        raise progress.stopped(signal_number(error)) from None
    print_message(format_result(result))
    if options.json:
        print_json(result.as_dict())
    else:
        print_message(f"Talk to it: {suggest_next_command(RunFolder(Path(result.run)))}")
