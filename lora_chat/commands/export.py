"""`lora-chat export`: write an adapter in the format of another program."""

import argparse
from pathlib import Path

from lora_chat.commands.options import ACCEPT_HELP, ADAPTER_HELP, add_data, add_trust, read_trust
from lora_chat.system.console import print_json


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `export`."""
    parser.add_argument("thing", metavar="RUN|PARCEL|ADAPTER", help=ADAPTER_HELP)
    parser.add_argument(
        "--to",
        required=True,
        choices=["gguf", "gguf-adapter", "ollama", "peft"],
        help="gguf: one model for llama.cpp and the programs on it; gguf-adapter: only the LoRA weights, for --lora of "
        "llama.cpp; ollama: a GGUF with a Modelfile; peft: the plain folder",
    )
    parser.add_argument(
        "--type",
        nargs="+",
        default=[],
        metavar="TYPE",
        help="one or several GGUF types: f32 f16 bf16 q8_0 (default) q6_k q5_k_m q5_k_s q4_k_m q4_k_s q3_k_m",
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="a new folder (exports/NAME-FORMAT)")
    parser.add_argument("--accept", action="store_true", help=ACCEPT_HELP)
    add_data(parser)
    add_trust(parser)


def run(options: argparse.Namespace) -> None:
    """Write an adapter, merged or alone, for other programs, and check each file with its real reader."""
    from lora_chat.pipeline.export_adapter import export_adapter
    from lora_chat.pipeline.held_out import EvaluationFiles

    files, trust = EvaluationFiles(options.data), read_trust(options)
    result = export_adapter(options.thing, options.to, options.type, options.out, files, trust, accept=options.accept)
    if options.json:
        print_json(result)
