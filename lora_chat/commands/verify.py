"""`lora-chat verify`: check a parcel, or whether an endpoint serves an adapter."""

import argparse
from pathlib import Path

from lora_chat.commands.options import ADAPTER_HELP, add_data, add_questions, add_trust, read_trust
from lora_chat.errors import IntegrityError, UsageError
from lora_chat.export.formats import GGUF_TYPES
from lora_chat.system.console import print_json, print_result

_EXPORTS = {name: f"GGUF {name}" for name in GGUF_TYPES} | {
    "merged": "merged model",
    "original-weights": "model merged into the original weights",
}
"""Names of tolerances by the choices of `--export`. Original weights are those before a quantized training."""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `verify`."""
    parser.add_argument(
        "parcel",
        metavar="PARCEL",
        help=f"a file written by `pack` or `pull`; with --endpoint also {ADAPTER_HELP}",
    )
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
    parser.add_argument("--statement", type=Path, metavar="FILE", help="compare this in-toto statement with the parcel")
    parser.add_argument(
        "--write-statement",
        type=Path,
        metavar="FILE",
        help="write the in-toto statement of the parcel if no check fails (NAME.intoto.json)",
    )
    add_trust(parser)
    _add_endpoint(parser.add_argument_group("is the deployed model the adapter"))


def _add_endpoint(group: argparse._ArgumentGroup) -> None:
    """Add the arguments of the check of an endpoint."""
    group.add_argument(
        "--endpoint",
        metavar="URL",
        help="ask this OpenAI-compatible server held-out prompts, and compare its replies with the adapter here",
    )
    group.add_argument("--model", metavar="NAME", help="name of the model there (default: its only one)")
    group.add_argument(
        "--export",
        choices=list(_EXPORTS),
        metavar="TYPE",
        help=f"what is served, for its tolerances: {', '.join(_EXPORTS)} (default: the same weights)",
    )
    group.add_argument("--key-file", type=Path, metavar="FILE", help="file with the key of the endpoint")
    group.add_argument(
        "--allow-remote", action="store_true", help="ask an endpoint on another machine; the prompts are sent there"
    )
    group.add_argument(
        "--quantization",
        choices=["4bit", "8bit", "none"],
        help="quantization of the base here (default: as in training)",
    )


def run(options: argparse.Namespace) -> None:
    """Check a parcel: structure, digests, weights, receipt, signature, and its base if that is on this machine."""
    if options.endpoint is not None:
        _run_endpoint(options)
        return
    named = [
        f"--{name.replace('_', '-')}"
        for name in ("model", "export", "key_file", "allow_remote", "quantization")
        if getattr(options, name)
    ]
    if named:
        raise UsageError(f"{named[0]} belongs to --endpoint URL. Fix: add it, or leave {named[0]} out.")
    from lora_chat.pipeline.held_out import EvaluationFiles
    from lora_chat.pipeline.verify_parcel import format_verification, verify_parcel
    from lora_chat.sharing.statement import write_statement
    from lora_chat.system.user_path import expand_user_path

    files = EvaluationFiles(options.data, options.questions)
    verification = verify_parcel(
        options.parcel,
        files,
        read_trust(options),
        repeat_measurements=options.again,
        parents=options.parent,
        statement=options.statement,
    )
    if verification.passed and verification.parcel and options.write_statement:
        write_statement(verification.parcel, expand_user_path(options.write_statement))
    print_json(verification.as_dict()) if options.json else print_result(format_verification(verification))
    if not verification.passed:
        raise IntegrityError(f"{options.parcel} is refused.")


def _run_endpoint(options: argparse.Namespace) -> None:
    """Compare an endpoint with the adapter here. Raise IntegrityError unless it serves the adapter."""
    others = ("again", "questions", "parent", "statement", "write_statement")
    named = next((name for name in others if getattr(options, name)), None)
    if named is not None:
        raise UsageError(f"--{named.replace('_', '-')} does not belong to --endpoint. Fix: run two commands.")
    from lora_chat.pipeline.endpoint.verify_endpoint import (
        DEFAULT_EXPORT,
        EndpointOptions,
        format_endpoint,
        verify_endpoint,
    )

    export = _EXPORTS.get(options.export, DEFAULT_EXPORT)
    endpoint = EndpointOptions(options.endpoint, options.model, options.key_file, options.allow_remote, export)
    verification = verify_endpoint(options.parcel, endpoint, read_trust(options), options.quantization, options.data)
    print_json(verification.as_dict()) if options.json else print_result(format_endpoint(verification))
    if not verification.passed:
        raise IntegrityError(f"The endpoint is not proven to serve {options.parcel}.")
