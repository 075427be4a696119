"""`lora-chat eval`: compare base and adapted model again."""

import argparse

from lora_chat.commands.options import ADAPTER_HELP, add_data, add_parent, add_questions, add_trust, read_trust
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
    add_parent(parser)
    add_trust(parser)


def run(options: argparse.Namespace) -> None:
    """Measure a run again on its held-out data, or a run, parcel or adapter on your own dialogues."""
    from lora_chat.pipeline.evaluate import evaluate_adapter
    from lora_chat.pipeline.held_out import EvaluationFiles

    files = EvaluationFiles(options.data, options.questions, options.general)
    result = evaluate_adapter(options.thing, files, read_trust(options), options.parent, options.metric, options.set)
    if options.json:
        print_json(result)
