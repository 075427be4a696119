"""`lora-chat merge`: merge adapters into a 16-bit model."""

import argparse
from pathlib import Path

from lora_chat.commands.options import ACCEPT_HELP, ADAPTER_HELP, add_data, add_trust, blend_weights, read_trust
from lora_chat.system.console import print_json


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `merge`."""
    parser.add_argument(
        "thing",
        metavar="RUN|PARCEL|ADAPTER",
        nargs="+",
        help=f"{ADAPTER_HELP}; several of one base are added up",
    )
    parser.add_argument("--to", required=True, metavar="DIR", help="a new folder for the merged model")
    parser.add_argument(
        "--weights", type=blend_weights, metavar="W,W,...", help="weight of each adapter, such as 0.7,0.3 (1)"
    )
    parser.add_argument(
        "--into",
        choices=["trained", "original"],
        default="trained",
        help="trained: the dequantized weights that training used (exact); original: the original weights of the base",
    )
    parser.add_argument("--accept", action="store_true", help=ACCEPT_HELP)
    parser.add_argument(
        "--check-with",
        action="append",
        default=[],
        metavar="PYTHON",
        help="also read the merged model with the Transformers of another environment, such as ENV/bin/python; may be "
        "repeated",
    )
    add_data(parser)
    add_trust(parser)


def run(options: argparse.Namespace) -> None:
    """Merge one or several adapters into a 16-bit model and check it against the adapted model."""
    from lora_chat.pipeline.held_out import EvaluationFiles
    from lora_chat.pipeline.merge_adapters import merge_adapters

    result = merge_adapters(
        options.thing,
        options.weights,
        Path(options.to),
        EvaluationFiles(options.data),
        read_trust(options),
        original=options.into == "original",
        accept=options.accept,
        check_with=options.check_with,
    )
    if options.json:
        print_json(result.model_dump())
