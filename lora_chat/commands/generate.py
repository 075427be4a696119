"""`lora-chat generate`: continue a plain text, or answer it."""

import argparse
import sys

from lora_chat.commands.options import (
    ADAPTER_HELP,
    add_model_options,
    add_sampling,
    add_trust,
    positive_int,
    read_sampling,
    read_trust,
)
from lora_chat.errors import UsageError
from lora_chat.system.console import ReplyPrinter, print_json, print_result

_MAX_COUNT = 1000
"""Largest number of texts of one call."""
_MAX_PROMPT_CHARACTERS = 4_000_000
"""Longest prompt from stdin, in characters."""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `generate`."""
    parser.add_argument("thing", metavar="RUN|PARCEL|ADAPTER|BASE", help=f"{ADAPTER_HELP}, or a base")
    parser.add_argument("prompt", metavar="TEXT", help="the text to continue; - reads it from stdin")
    parser.add_argument("--n", type=positive_int, default=1, metavar="N", help="number of texts (1)")
    add_sampling(parser)
    parser.add_argument("--chat", action="store_true", help="answer the text through the chat template")
    parser.add_argument("--system", metavar="TEXT", help="with --chat: system message (default: that of training)")
    add_model_options(parser)
    add_trust(parser)


def run(options: argparse.Namespace) -> None:
    """Continue a plain text without a chat template, or answer it with --chat."""
    if options.n > _MAX_COUNT:
        raise UsageError(f"--n {options.n}: at most {_MAX_COUNT:,} texts are written at once. Fix: call it again.")
    if options.thinking and not options.chat:
        raise UsageError("--thinking belongs to --chat: a plain text has no thoughts. Fix: add --chat.")
    generation = read_sampling(options)
    prompt = _read_stdin() if options.prompt == "-" else options.prompt
    from lora_chat.pipeline.generate_text import TextRequest, generate_texts

    request = TextRequest(prompt, options.n, options.max_new_tokens, generation, options.chat, options.system)
    printer = None if options.json or options.n > 1 else ReplyPrinter()
    write = printer.write if printer else None
    texts = generate_texts(options.thing, request, options.quantization, read_trust(options), options.thinking, write)
    if options.json:
        settings = {"temperature": generation.temperature, "top_p": generation.top_p}
        settings |= {"max_new_tokens": options.max_new_tokens, "chat": options.chat}
        print_json({"prompt": prompt, "texts": texts, "settings": settings, "seed": generation.seed})
    elif printer:
        printer.close()
    else:
        for number, text in enumerate(texts, 1):
            print_result(f"--- {number} of {len(texts)} ---\n{text}")


def _read_stdin() -> str:
    """Return the text on stdin without its last line feed. Raise UsageError if it is too long or not UTF-8."""
    try:
        text = sys.stdin.read(_MAX_PROMPT_CHARACTERS + 1)
    except UnicodeDecodeError as error:
        raise UsageError(f"The prompt on stdin is not UTF-8 text (byte {error.start}).") from error
    if len(text) > _MAX_PROMPT_CHARACTERS:
        raise UsageError(f"The prompt on stdin has more than {_MAX_PROMPT_CHARACTERS:,} characters.")
    return text.removesuffix("\n")
