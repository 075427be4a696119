"""`lora-chat sft`: fine-tune a base on chat dialogues."""

import argparse
import os
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from lora_chat.commands.error_report import report_error
from lora_chat.commands.options import RECIPE_HELP, add_settings, add_start_consent
from lora_chat.errors import ReportedError, UsageError
from lora_chat.processes.launch import check_count, launch_processes, remove_option
from lora_chat.processes.rank import LAUNCHER_VARIABLE, Rank, read_rank, refuse_windows
from lora_chat.system.console import label_output, print_json, print_message, silence_output
from lora_chat.system.signals import signal_number

if TYPE_CHECKING:
    from lora_chat.config.recipe import Recipe
    from lora_chat.pipeline.run_status import RunProgress
    from lora_chat.processes.failure import Failure

_TIMEOUT_MINUTES = 30.0
_MAX_TIMEOUT_MINUTES = 7 * 24 * 60


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
    parser.add_argument(
        "--processes", type=int, metavar="N", help="train with N processes of this machine, one for each card"
    )
    parser.add_argument(
        "--process-timeout",
        type=float,
        default=_TIMEOUT_MINUTES,
        metavar="MINUTES",
        help="longest time without progress of a process for which others wait (default: 30)",
    )
    add_start_consent(parser)
    add_settings(parser)


def run(options: argparse.Namespace) -> None:
    """Fine-tune a base with the settings of a recipe."""
    if not 0 < options.process_timeout <= _MAX_TIMEOUT_MINUTES:
        raise UsageError(
            f"--process-timeout {options.process_timeout:g}: a number of minutes up to {_MAX_TIMEOUT_MINUTES} is "
            "needed. Fix: --process-timeout 30."
        )
    if options.processes is not None:
        check_count(options.processes, os.environ)
        if options.processes > 1:
            _launch(options)
            return
    rank = read_rank(os.environ)
    if rank.size > 1:
        _train_together(options, rank)
        return
    recipe = _read_recipe(options)
    from lora_chat.pipeline.run_status import RunProgress

    _fine_tune(options, recipe, RunProgress(command=_format_command(options, rank)))


def _read_recipe(options: argparse.Namespace) -> "Recipe":
    """Read the recipe and check the options that need no files."""
    from lora_chat.config.load import read_recipe

    recipe = read_recipe(options.recipe, options.set)
    if options.accept_change and options.resume is None:
        raise UsageError(
            "--accept-change needs --resume, because only a continued run can have changed. Fix: add --resume."
        )
    if options.adopt and options.resume is None:
        raise UsageError("--adopt needs --resume, because a new run is always your own. Fix: leave --adopt out.")
    return recipe


def _launch(options: argparse.Namespace) -> None:
    """Start the processes, after a look at the recipe, which is quick."""
    refuse_windows()
    _read_recipe(options)
    code = launch_processes(options.processes, remove_option(options.arguments, "--processes"))
    if code:
        raise ReportedError(code)


def _train_together(options: argparse.Namespace, rank: Rank) -> None:
    """Train as one of several processes: the first one writes the run and prints."""
    refuse_windows()
    if rank.index > 0:
        if options.verbose:
            label_output(f"[{rank.index + 1}] ")
        else:
            silence_output()
    from lora_chat.pipeline.follow_run import follow_run
    from lora_chat.pipeline.run_status import RunProgress
    from lora_chat.processes.beats import WatchLimits
    from lora_chat.processes.connect import connect
    from lora_chat.processes.group import use_group
    from lora_chat.processes.session import SessionTexts, end_process, joined_processes
    from lora_chat.system.device_choice import chosen_card_name, share_cards
    from lora_chat.system.hardware import detect_hardware

    progress = RunProgress(command=_format_command(options, rank))

    def describe(error: BaseException) -> "Failure | None":
        from lora_chat.processes.failure import Failure

        if isinstance(error, BrokenPipeError):
            return Failure(rank.index, 141, "Nothing reads the output any more.", label="")
        report = report_error(error, options.command, options.arguments)
        if report is None:
            return None
        number = report.exit_code - 128 if report.exit_code > 128 else 0
        return Failure(rank.index, report.exit_code, report.text, report.label, number)

    texts = SessionTexts(describe, lambda: progress.format_resume_hint() if progress.run else "")
    try:
        with joined_processes(rank, WatchLimits.from_minutes(options.process_timeout), texts) as watch:
            recipe = _read_recipe(options)
            share_cards(rank.local_index, rank.local_size, may_see_own_card=not rank.is_from_agent)
            hardware = detect_hardware(recipe.base.device)
            with use_group(connect(rank, hardware.device, chosen_card_name(), watch)) as group:
                if group.is_first:
                    _fine_tune(options, recipe, progress)
                else:
                    follow_run(recipe, progress)
                group.close()
    except ReportedError as error:
        end_process(error.exit_code)
    if rank.index > 0:
        end_process(0)


def _fine_tune(options: argparse.Namespace, recipe: "Recipe", progress: "RunProgress") -> None:
    """Run the training and print its result."""
    from lora_chat.pipeline.fine_tune import fine_tune
    from lora_chat.pipeline.resume import ResumeRequest
    from lora_chat.pipeline.sft_result import format_result, suggest_next_command
    from lora_chat.runs.run_folder import RunFolder

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


def _format_command(options: argparse.Namespace, rank: Rank) -> str:
    """Return the command line of this run, with which it can be continued."""
    start = ["lora-chat"]
    if rank.size > 1 and LAUNCHER_VARIABLE not in os.environ:
        machines = rank.size // rank.local_size
        start = ["torchrun", *(["--nnodes", str(machines)] if machines > 1 else [])]
        start += ["--nproc-per-node", str(rank.local_size), "-m", "lora_chat"]
    command = [*start, "sft", options.recipe]
    command += [part for setting in options.set for part in ("--set", setting)]
    if rank.size > 1 and LAUNCHER_VARIABLE in os.environ:
        command += ["--processes", str(rank.size)]
    command += ["--accept-template"] if options.accept_template else []
    return shlex.join(command)
