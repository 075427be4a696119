"""`lora-chat chat`: talk to an adapted model or to a base."""

import argparse

from lora_chat.commands.options import ADAPTER_HELP, add_trust, positive_int, read_trust


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `chat`."""
    parser.add_argument("thing", metavar="RUN|PARCEL|ADAPTER|BASE", help=f"{ADAPTER_HELP}, or a base")
    parser.add_argument("--system", help="system message (default: that of training)")
    parser.add_argument(
        "--max-new-tokens",
        type=positive_int,
        default=256,
        metavar="N",
        help="largest number of tokens of a reply (256)",
    )
    parser.add_argument(
        "--quantization",
        choices=["4bit", "8bit", "none"],
        help="quantization of the base (default: as in training; for a base: none)",
    )
    parser.add_argument(
        "--thinking",
        choices=["on", "off"],
        help="thoughts before replies (default: as in training)",
    )
    add_trust(parser)


def run(options: argparse.Namespace) -> None:
    """Talk to the model of a run, a parcel, an adapter or a base."""
    from lora_chat.pipeline.open_chat import open_chat

    trust = read_trust(options)
    session = open_chat(
        options.thing,
        options.quantization,
        options.system,
        options.max_new_tokens,
        options.json,
        trust,
        options.thinking,
    )
    session.run()
