"""Compiles and renders chat templates of strangers, in a process of its own with limits on time and memory.

It reads requests on its standard input and answers on its standard output, as frames (`system/frames.py`), until its
input ends.
"""

import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any

from lora_chat.system.frames import pack_frame, read_frame
from lora_chat.system.memory_usage import address_space_bytes
from lora_chat.system.process_limits import forbid_file_writes, time_and_memory_limit

EXIT_OUT_OF_MEMORY, EXIT_OUTPUT_TOO_LONG = 71, 72
"""Exit codes: out of memory, and too much text."""
_BASE_MEMORY_BYTES = 1 << 30
"""Memory for one request, in bytes, on top of what the child takes by itself and of 32 times the request."""
_BASE_OUTPUT_CHARACTERS, _OUTPUT_FACTOR = 1 << 17, 32
"""Longest text of a chat, in characters: so many, and so many for each character of its messages and tools."""


def main() -> None:
    """Answer requests until the parent closes the pipe or ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches every process of a terminal; the parent decides
    sys.dont_write_bytecode = True
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever is printed must not look like an answer
    compile_template = _import_compiler()
    forbid_file_writes()
    start = address_space_bytes() + (1 << 26)
    _send(answers, {"ready": True})
    while (request := read_frame(sys.stdin.buffer)) is not None:
        try:
            with time_and_memory_limit(request["seconds"], _BASE_MEMORY_BYTES + 32 * request["size"], start):
                found = pack_frame({"jobs": render_request(request, compile_template)})
        except MemoryError:
            os._exit(EXIT_OUT_OF_MEMORY)
        if len(found) > request["most"]:
            os._exit(EXIT_OUTPUT_TOO_LONG)
        answers.write(found)
        answers.flush()


def _send(answers: Any, value: Any) -> None:
    answers.write(pack_frame(value))
    answers.flush()


def _import_compiler() -> Callable[[str], Callable[..., str]]:
    from transformers.utils.chat_template_utils import _compile_jinja_template

    @lru_cache(maxsize=8)
    def compile_template(template: str) -> Callable[..., str]:
        render: Callable[..., str] = _compile_jinja_template(template).render
        return render

    return compile_template


def render_request(
    request: Mapping[str, Any], compile_template: Callable[[str], Callable[..., str]]
) -> list[dict[str, Any]]:
    """Return the texts of each job, or its error with the name of its class; exits where they are too long."""
    table, tools = request["messages"], request["tools"]
    found: list[dict[str, Any]] = []
    for job in request["jobs"]:
        kinds = {"tools": None if job["tools"] is None else tools[job["tools"]], "documents": None}
        kinds["add_generation_prompt"] = job["reply_follows"]
        try:
            render = compile_template(request["template"])
        except MemoryError:
            raise
        except Exception as error:
            found.append({"error": _error_text(error), "kind": type(error).__name__, "compiling": True})
            continue
        try:
            texts = []
            for chat, size in job["chats"]:
                text = render(messages=[table[i] for i in chat], **kinds, **request["special"])
                if len(text) > _BASE_OUTPUT_CHARACTERS + _OUTPUT_FACTOR * size:
                    os._exit(EXIT_OUTPUT_TOO_LONG)
                texts.append(text)
            found.append({"texts": _compress_prefixes(texts)})
        except MemoryError:
            raise
        except Exception as error:  # a template is a program of its own, and fails in its own ways
            found.append({"error": _error_text(error), "kind": type(error).__name__})
    return found


def _error_text(error: Exception) -> str:
    try:
        return str(error)[:2000]
    except Exception:
        return ""


def _compress_prefixes(texts: Sequence[str]) -> list[Any]:
    """Each text as (characters that it shares with the one before, the rest): prompts of a dialogue grow."""
    found: list[Any] = []
    before = ""
    for text in texts:
        shared = len(before) if before and text.startswith(before) else 0
        found.append([shared, text[shared:]])
        before = text
    return found


def expand_prefixes(pieces: Sequence[Any]) -> list[str]:
    """Return the texts that were shortened."""
    texts: list[str] = []
    for shared, rest in pieces:
        texts.append((texts[-1][:shared] if shared else "") + rest)
    return texts


if __name__ == "__main__":
    main()
