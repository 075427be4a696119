"""`lora-chat verify`: check a parcel."""

import argparse

from lora_chat.commands.options import add_data, add_questions, add_trust, read_trust
from lora_chat.errors import IntegrityError
from lora_chat.system.console import print_json, print_result


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `verify`."""
    parser.add_argument("parcel", metavar="PARCEL", help="a file written by `pack` or `pull`")
    parser.add_argument(
        "--again", action="store_true", help="load the base and repeat the measurements (takes minutes)"
    )
    add_data(parser)
    add_questions(parser)
    parser.add_argument(
        "--parent",
        action="append",
        default=[],
        metavar="RUN|PARCEL|ADAPTER",
        help="a parent in its lineage, whose digests are compared; may be repeated",
    )
    add_trust(parser)


def run(options: argparse.Namespace) -> None:
    """Check a parcel: structure, digests, weights, receipt, signature, and its base if that is on this machine."""
    from lora_chat.pipeline.held_out import EvaluationFiles
    from lora_chat.pipeline.verify_parcel import format_verification, verify_parcel

    files = EvaluationFiles(options.data, options.questions)
    verification = verify_parcel(
        options.parcel, files, read_trust(options), repeat_measurements=options.again, parents=options.parent
    )
    print_json(verification.as_dict()) if options.json else print_result(format_verification(verification))
    if not verification.passed:
        raise IntegrityError(f"{options.parcel} is refused.")
