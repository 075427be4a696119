"""Worker process that compiles and renders untrusted chat templates, with limits on time and memory.

It reads requests from standard input and writes answers to standard output, as frames (`system/frames.py`), until its
input ends.
"""

import os
import signal
import sys
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import IO, TypedDict

from lora_chat.system.frames import pack_frame, read_frame
from lora_chat.system.memory_usage import address_space_bytes
from lora_chat.system.process_limits import forbid_file_writes, time_and_memory_limit

EXIT_OUT_OF_MEMORY, EXIT_OUTPUT_TOO_LONG = 71, 72
"""Exit codes for lack of memory and for too much text."""
_BASE_MEMORY_BYTES = 1 << 30
"""Memory for one request, in bytes, in addition to the idle process and 32 times the request."""
BASE_OUTPUT_CHARACTERS, OUTPUT_FACTOR = 1 << 17, 32
"""Longest text of a chat: a base in characters, and a factor for each character of its messages and tools."""


class RequestedJob(TypedDict):
    """Chats that are rendered with the same arguments."""

    chats: list[tuple[list[int], int]]
    """For each chat, the numbers of its messages, and its size in characters."""
    reply_follows: bool
    tools: int | None
    """Number of the tools, if there are any."""
    arguments: dict[str, object]
    """Further variables of the template."""
    stepwise: bool
    """Whether the answer has the pieces of a chat instead of its text."""


class RenderRequest(TypedDict):
    """A request to the worker."""

    template: str
    special: dict[str, object]
    """Special tokens by name, which templates use as variables."""
    messages: list[dict[str, object]]
    tools: list[Sequence[dict[str, object]]]
    jobs: list[RequestedJob]
    size: int
    """Size in characters."""
    seconds: float
    """Time limit."""
    most: int
    """Largest answer, in bytes."""


class JobAnswer(TypedDict, total=False):
    """The texts of a job, or its error."""

    texts: list[tuple[int, str]]
    """For each text, the characters that it shares with the text before, and the rest."""
    error: str
    kind: str
    """Class of the error."""
    compiling: bool
    """Whether the template cannot be compiled."""


def main() -> None:
    """Answer requests until the parent closes the pipe or ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes of a terminal; the parent handles it
    sys.dont_write_bytecode = True
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # anything printed must not reach the parent as an answer
    compile_template = _import_compiler()
    forbid_file_writes()
    start = address_space_bytes() + (1 << 26)
    _send(answers, {"ready": True})
    while (request := read_frame(sys.stdin.buffer)) is not None:
        try:
            with time_and_memory_limit(request["seconds"], _BASE_MEMORY_BYTES + 32 * request["size"], start):
                answer = pack_frame({"jobs": render_request(request, compile_template)})
        except MemoryError:
            os._exit(EXIT_OUT_OF_MEMORY)
        if len(answer) > request["most"]:
            os._exit(EXIT_OUTPUT_TOO_LONG)
        answers.write(answer)
        answers.flush()


def _send(answers: IO[bytes], value: object) -> None:
    """Write a value as one frame."""
    answers.write(pack_frame(value))
    answers.flush()


def _import_compiler() -> Callable[[str], Callable[..., str]]:
    """Return the function that compiles a template, imported before files can no longer be written."""
    from transformers.utils.chat_template_utils import _compile_jinja_template

    import lora_chat.data.encoding.stepwise_render  # noqa: F401

    @lru_cache(maxsize=8)
    def compile_template(template: str) -> Callable[..., str]:
        render: Callable[..., str] = _compile_jinja_template(template).render
        return render

    return compile_template


def render_request(request: RenderRequest, compile_template: Callable[[str], Callable[..., str]]) -> list[JobAnswer]:
    """Return the texts of each job, or its error with the name of the class; exits if the texts are too long."""
    table, tools = request["messages"], request["tools"]
    answers: list[JobAnswer] = []
    for job in request["jobs"]:
        arguments: dict[str, object] = {
            "tools": None if job["tools"] is None else tools[job["tools"]],
            "documents": None,
        }
        arguments |= job["arguments"] | {"add_generation_prompt": job["reply_follows"]}
        try:
            render = compile_template(request["template"])
        except MemoryError:
            raise
        except Exception as error:
            answers.append({"error": _error_text(error), "kind": type(error).__name__, "compiling": True})
            continue
        try:
            texts = []
            for chat, size in job["chats"]:
                messages = [table[i] for i in chat]
                # a variable that is given twice, such as a special token called messages, is an error
                if job["stepwise"]:
                    find_pieces = _find_stepwise_render(request["template"])
                    rendered = find_pieces(messages=messages, **arguments, **request["special"])
                else:
                    rendered = [render(messages=messages, **arguments, **request["special"])]
                if sum(map(len, rendered)) > BASE_OUTPUT_CHARACTERS + OUTPUT_FACTOR * size:
                    os._exit(EXIT_OUTPUT_TOO_LONG)
                texts += rendered
            answers.append({"texts": _compress_prefixes(texts)})
        except MemoryError:
            raise
        except Exception as error:  # a template is a program and can raise anything
            answers.append({"error": _error_text(error), "kind": type(error).__name__})
    return answers


def _find_stepwise_render(template: str) -> Callable[..., list[str]]:
    """Return the function that renders a chat in pieces; raises LookaheadError if the template may look ahead."""
    from lora_chat.data.encoding.message_lists import LookaheadError
    from lora_chat.data.encoding.stepwise_render import find_stepwise_render

    render = find_stepwise_render(template)
    if render is None:
        raise LookaheadError("the template looks at later messages")
    return render


def _error_text(error: Exception) -> str:
    """Return the message of an error, which an error raised by a template may refuse to give."""
    try:
        return str(error)[:2000]
    except Exception:
        return ""


def _compress_prefixes(texts: Sequence[str]) -> list[tuple[int, str]]:
    """Return each text as (characters shared with the text before, rest), because prompts repeat the dialogue."""
    pieces: list[tuple[int, str]] = []
    before = ""
    for text in texts:
        shared = len(before) if before and text.startswith(before) else 0
        pieces.append((shared, text[shared:]))
        before = text
    return pieces


def expand_prefixes(pieces: Sequence[tuple[int, str]]) -> list[str]:
    """Return the texts that `_compress_prefixes` shortened."""
    texts: list[str] = []
    for shared, rest in pieces:
        texts.append((texts[-1][:shared] if shared else "") + rest)
    return texts


if __name__ == "__main__":
    main()
