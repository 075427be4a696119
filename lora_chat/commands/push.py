"""`lora-chat push`: upload a parcel to the Hugging Face hub."""

import argparse

from lora_chat.system.console import print_json


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `push`."""
    parser.add_argument("parcel", metavar="PARCEL", help="a file written by `pack`")
    parser.add_argument("repository", metavar="OWNER/NAME", help="created if it does not exist")
    parser.add_argument("--private", action="store_true", help="create it as a private repository")


def run(options: argparse.Namespace) -> None:
    """Upload a parcel to a repository of the Hugging Face hub, in PEFT's layout."""
    from lora_chat.pipeline.publish import push_parcel

    result = push_parcel(options.parcel, options.repository, private=options.private)
    if options.json:
        print_json(result)
