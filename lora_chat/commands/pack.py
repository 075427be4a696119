"""`lora-chat pack`: write the parcel of a run."""

import argparse
import re
from pathlib import Path

from lora_chat.commands.options import add_consent, read_trust
from lora_chat.system.console import print_json


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `pack`."""
    parser.add_argument("run", metavar="RUN", help="a run folder")
    parser.add_argument("--out", type=Path, metavar="FILE", help="file to write (NAME.lorachat)")
    parser.add_argument("--license", metavar="ID", help="SPDX id of the adapter's license, such as CC-BY-4.0")
    parser.add_argument(
        "--language",
        action="append",
        default=[],
        type=_read_language,
        metavar="CODE",
        help="ISO 639 code of a language of the replies, such as en, for the model card; may be repeated",
    )
    parser.add_argument("--key", type=Path, metavar="FILE", help="sign with this private key (PEM, elliptic curve)")
    parser.add_argument("--base", metavar="BASE", help="folder or hub id of the base, if it has moved")
    parser.add_argument(
        "--accept-findings",
        action="store_true",
        help="share secrets that the audit of the run only warned about",
    )
    parser.add_argument(
        "--write-statement", type=Path, metavar="FILE", help="write an in-toto statement too (NAME.intoto.json)"
    )
    add_consent(parser)


def run(options: argparse.Namespace) -> None:
    """Pack a run into one small file that a receiver can verify: weights, config, model card and receipt."""
    from lora_chat.pipeline.pack_run import pack_run

    result = pack_run(
        options.run,
        options.out,
        options.license,
        options.key,
        read_trust(options),
        accept_findings=options.accept_findings,
        statement=options.write_statement,
        languages=options.language,
    )
    if options.json:
        print_json(result.model_dump(exclude_none=True))


def _read_language(text: str) -> str:
    """Return a code of a language. Raise ArgumentTypeError for any other text."""
    if not re.fullmatch(r"[a-z]{2,3}", text):
        raise argparse.ArgumentTypeError(f"{text!a} is not a code of two or three small letters, such as en")
    return text
