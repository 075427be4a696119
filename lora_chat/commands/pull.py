"""`lora-chat pull`: download and verify an adapter from the Hugging Face hub."""

import argparse
from pathlib import Path

from lora_chat.system.console import print_json


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `pull`."""
    parser.add_argument("repository", metavar="OWNER/NAME", help="a repository that `push` created")
    parser.add_argument("--revision", metavar="COMMIT", help="branch, tag or commit")
    parser.add_argument("--out", type=Path, metavar="FILE", help="file to write (NAME.lorachat)")
    parser.add_argument(
        "--signer", type=Path, metavar="KEY", help="refuse a parcel without a signature of this public key"
    )


def run(options: argparse.Namespace) -> None:
    """Download an adapter that `push` uploaded, verify it, and keep it as a parcel."""
    from lora_chat.pipeline.publish import pull_parcel

    result = pull_parcel(options.repository, options.revision, options.out, options.signer)
    if options.json:
        print_json(result)
