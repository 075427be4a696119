"""Greedy replies as `lora-chat chat` gives them, one at a time, before the server starts."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path


def collect_replies(
    thing: str, questions: Sequence[str], max_new_tokens: int, base: str | None = None
) -> dict[str, str]:
    """Return the greedy reply of a run, parcel, adapter or base to each question."""
    command = [str(Path(sys.executable).parent / "lora-chat"), "chat", thing, "--json"]
    command += ["--max-new-tokens", str(max_new_tokens), *(["--base", base] if base else [])]
    lines = "".join(f"/reset\n{question}\n" for question in questions)
    done = subprocess.run(command, input=lines, capture_output=True, text=True, check=True)  # noqa: S603  # its own words
    replies = [json.loads(line) for line in done.stdout.splitlines()]
    return {question: str(reply["content"]) for question, reply in zip(questions, replies, strict=True)}
