"""`lora-chat eval`: compare base and adapted model again."""

import argparse
import os
import sys

from lora_chat.commands.options import (
    ADAPTER_HELP,
    add_data,
    add_parent,
    add_questions,
    add_trust,
    positive_int,
    read_trust,
)
from lora_chat.errors import UsageError
from lora_chat.system.console import print_json


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `eval`."""
    parser.add_argument("thing", metavar="RUN|PARCEL|ADAPTER", help=ADAPTER_HELP)
    add_data(parser)
    add_questions(parser)
    parser.add_argument(
        "--general",
        metavar="auto|all|off|FILE",
        help="general items that show forgetting (default: those that the run asked, otherwise auto)",
    )
    parser.add_argument(
        "--metric",
        action="append",
        default=[],
        metavar="FILE:FUNCTION",
        help="score replies by a function (reference, reply) -> number, True or False; runs the code of FILE; may be "
        "repeated",
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="evaluation.KEY=VALUE",
        help="change metrics, number_pattern, replies, samples, max_new_tokens or generation; may be repeated; the "
        "comparison in a run stays unchanged",
    )
    parser.add_argument(
        "--tasks",
        metavar="TASK,...",
        help="run lm-evaluation-harness in place of the comparison: names of its tasks, or .yaml files of your own",
    )
    parser.add_argument("--limit", type=positive_int, metavar="N", help="with --tasks: evaluate N documents of each")
    parser.add_argument("--allow-code", action="store_true", help="with --tasks: run the code of your task files")
    add_parent(parser)
    add_trust(parser)


def run(options: argparse.Namespace) -> None:
    """Measure a run again on its held-out data, or a run, parcel or adapter on your own dialogues."""
    if options.tasks is not None:
        _run_tasks(options)
        return
    if options.limit is not None or options.allow_code:
        raise UsageError("--limit and --allow-code belong to --tasks. Fix: add --tasks TASK, or leave them out.")
    from lora_chat.pipeline.evaluate import evaluate_adapter
    from lora_chat.pipeline.held_out import EvaluationFiles

    files = EvaluationFiles(options.data, options.questions, options.general)
    result = evaluate_adapter(options.thing, files, read_trust(options), options.parent, options.metric, options.set)
    if options.json:
        print_json(result.as_dict())


def _run_tasks(options: argparse.Namespace) -> None:
    """Run lm-evaluation-harness. Raise UsageError for options of the comparison."""
    if not sys.stderr.isatty():
        os.environ.setdefault("TQDM_DISABLE", "1")  # read when tqdm is imported; its bars are for terminals
    from lora_chat.pipeline.evaluate_harness import evaluate_tasks

    for name in ("data", "questions", "general", "metric", "set", "parent"):
        if getattr(options, name):
            raise UsageError(
                f"--{name} does not fit --tasks, whose data and metrics are in the task. Fix: leave it out."
            )
    result = evaluate_tasks(
        options.thing, options.tasks, read_trust(options), limit=options.limit, allow_code=options.allow_code
    )
    if options.json:
        print_json(result)
