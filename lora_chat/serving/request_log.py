"""The log of a server: one line for each request without content, and prompts and replies only if the user asks."""

import json
import logging
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from lora_chat.errors import UsageError
from lora_chat.serving.telemetry import method_name, route_pattern
from lora_chat.system.regular_files import open_regular_file
from lora_chat.system.sanitize import sanitize_line

if TYPE_CHECKING:
    from starlette.types import Scope

    from lora_chat.serving.request_record import RequestRecord

logger = logging.getLogger(__name__)

STDERR = Path("-")
_MAX_COPY_BYTES = 2**22
"""Largest part of a reply in the log of content, in bytes."""


class RequestLog:
    """Lines about requests, and with `content` a file of prompts and replies."""

    def __init__(self, content: Path | None = None) -> None:
        """Open the file of prompts and replies. Raise UsageError if it cannot be written."""
        self._to_stderr = content == STDERR
        self._file: BinaryIO | None = None
        if content is None:
            return
        if not self._to_stderr:
            try:
                handle = open_regular_file(content, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            except OSError as error:
                raise UsageError(
                    f"Cannot write the log of content {content} ({error.strerror}). Fix: another --content-file"
                ) from error
            self._file = os.fdopen(handle, "ab", buffering=0)
        logger.warning(f"Prompts and replies are logged to {'stderr' if self._to_stderr else content}.")

    def start_copy(self) -> "ContentCopy | None":
        """Return a buffer for the body of an answer, or None if no content is logged."""
        return ContentCopy() if self._to_stderr or self._file else None

    def write(self, scope: "Scope", record: "RequestRecord", status: int) -> None:
        """Log one request: route, status, model, tokens and times."""
        now = time.monotonic()
        words = [method_name(scope), route_pattern(scope), str(status or "client left")]
        if record.refused is not None and status:
            words.append(f"refused={record.refused}")
        if record.model is not None:
            words.append(f"model={record.model} in={record.prompt_tokens} out={record.completion_tokens}")
        if record.first_token_at is not None:
            words.append(f"first={record.first_token_at - record.started:.3f}s")
        if record.finish is not None:
            words.append(f"finish={record.finish}")
        words.append(f"total={now - record.started:.3f}s")
        logger.info(sanitize_line(" ".join(words), 300))

    def write_content(self, scope: "Scope", body: bytes, reply: "ContentCopy") -> None:
        """Log a prompt with its reply as one line of JSON."""
        entry = {
            "time": time.time(),
            "route": route_pattern(scope),
            "request": body.decode("utf-8", "replace"),
            "reply": reply.content.decode("utf-8", "replace"),
        }
        line = json.dumps(entry)
        if self._file is not None:
            try:
                self._file.write(f"{line}\n".encode("ascii"))
            except OSError as error:
                logger.warning(f"The log of content could not be written ({error.strerror}).")
        else:
            logger.info(line)

    def close(self) -> None:
        """Close the file of prompts and replies."""
        if self._file is not None:
            self._file.close()


class ContentCopy:
    """The beginning of the body of an answer."""

    def __init__(self) -> None:
        self.content = bytearray()

    def add(self, piece: bytes) -> None:
        """Append a piece; what exceeds the limit is left out."""
        self.content += piece[: max(0, _MAX_COPY_BYTES - len(self.content))]
