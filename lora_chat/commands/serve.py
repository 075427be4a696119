"""`lora-chat serve`: answer requests over HTTP."""

import argparse

from lora_chat.commands.options import ADAPTER_HELP, add_trust, positive_int, read_trust


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `serve`."""
    parser.add_argument("things", nargs="+", metavar="RUN|PARCEL|ADAPTER|BASE", help=f"{ADAPTER_HELP}, or a base")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (127.0.0.1, this machine only)")
    parser.add_argument("--port", type=positive_int, default=8000, metavar="N", help="port to listen on (8000)")
    parser.add_argument(
        "--quantization",
        choices=["4bit", "8bit", "none"],
        help="quantization of the base (default: as in training; for a base: none)",
    )
    add_trust(parser)


def run(options: argparse.Namespace) -> None:
    """Answer requests to adapters and their base over HTTP, as OpenAI's API does."""
    from lora_chat.inference.continuous.request import BatchLimits
    from lora_chat.pipeline.served_models import open_served_models
    from lora_chat.serving.run_server import run_server
    from lora_chat.serving.server_options import ServerOptions

    models = open_served_models(options.things, read_trust(options), options.quantization, BatchLimits())
    run_server(models, ServerOptions(host=options.host, port=options.port))
