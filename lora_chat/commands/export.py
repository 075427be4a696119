"""`lora-chat export`: write an adapter in the format of another program."""

import argparse
from pathlib import Path

from lora_chat.commands.options import ACCEPT_HELP, ADAPTER_HELP, add_data, add_trust, read_trust
from lora_chat.export.formats import DEFAULT_GGUF_TYPE, EXPORT_FORMATS, GGUF_TYPES
from lora_chat.system.console import print_json


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `export`."""
    parser.add_argument("thing", metavar="RUN|PARCEL|ADAPTER", help=ADAPTER_HELP)
    parser.add_argument(
        "--to",
        required=True,
        choices=list(EXPORT_FORMATS),
        help="; ".join(f"{name}: {export_format.help}" for name, export_format in EXPORT_FORMATS.items()),
    )
    parser.add_argument(
        "--type",
        nargs="+",
        default=[],
        metavar="TYPE",
        help="one or several GGUF types: "
        + " ".join(f"{name} (default)" if name == DEFAULT_GGUF_TYPE else name for name in GGUF_TYPES),
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="a new folder (exports/NAME-FORMAT)")
    parser.add_argument("--accept", action="store_true", help=ACCEPT_HELP)
    add_data(parser)
    add_trust(parser)


def run(options: argparse.Namespace) -> None:
    """Write an adapter, merged or separate, for other programs, and check each file with the program that reads it."""
    from lora_chat.pipeline.export_adapter import export_adapter
    from lora_chat.pipeline.held_out import EvaluationFiles

    files, trust = EvaluationFiles(options.data), read_trust(options)
    result = export_adapter(options.thing, options.to, options.type, options.out, files, trust, accept=options.accept)
    if options.json:
        print_json(result.model_dump(by_alias=True))
