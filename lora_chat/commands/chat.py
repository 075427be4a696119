"""`lora-chat chat`: talk to an adapted model or to a base."""

import argparse

from lora_chat.commands.options import (
    ADAPTER_HELP,
    add_model_options,
    add_sampling,
    add_trust,
    read_sampling,
    read_trust,
)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `chat`."""
    parser.add_argument("thing", metavar="RUN|PARCEL|ADAPTER|BASE", help=f"{ADAPTER_HELP}, or a base")
    parser.add_argument("--system", help="system message (default: that of training)")
    add_sampling(parser)
    add_model_options(parser)
    add_trust(parser)


def run(options: argparse.Namespace) -> None:
    """Talk to the model of a run, a parcel, an adapter or a base."""
    from lora_chat.pipeline.open_chat import open_chat

    trust, generation = read_trust(options), read_sampling(options)
    session = open_chat(
        options.thing,
        options.quantization,
        options.system,
        options.max_new_tokens,
        options.json,
        trust,
        options.thinking,
        generation,
    )
    session.run()
