"""Turn the output of a failed converter of llama.cpp into one sentence with a reason and a remedy."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from lora_chat.system.sanitize import sanitize_line

_MAX_LENGTH = 300
"""Longest quotation of a converter, in characters."""
_OTHER_FORMATS = "merge --to FOLDER (Transformers, vLLM, SGLang) or export --to peft, which need no GGUF"


@dataclass(frozen=True)
class _Failure:
    """A failure that is understood."""

    pattern: str
    """Regular expression for the line that names the failure."""
    reason: str
    """Reason, with the groups of the pattern as {0}, {1}."""
    fix: str = _OTHER_FORMATS


_FAILURES = (
    _Failure(
        r"BPE pre-tokenizer was not recognized",
        "llama.cpp does not know how this base's tokenizer divides text (BPE pre-tokenizer was not recognized)",
    ),
    _Failure(r"(?:Model|Architecture) '?([\w.-]+)'? (?:is )?not supported", "llama.cpp has no model {0}"),
    _Failure(
        r"(?:File not found|Missing):? \S*?([\w.-]+\.model(?:\.v\d+)?)\b",
        "llama.cpp needs the file {0} for this architecture, which the base lacks",
        f"copy {{0}} from the original repository into the base's folder, or use {_OTHER_FORMATS}",
    ),
    _Failure(r"Can not map tensor '([^']+)'", "llama.cpp has no place for the weight {0}"),
    _Failure(r"Can not map tensor ([\w.]+)", "llama.cpp has no place for the weight {0}"),
    _Failure(r"^KeyError: '?([\w.]+)'?$", "llama.cpp's converter needs the field {0}, which config.json lacks"),
    _Failure(
        r"could not find any of: (\[[^\]]*\])", "llama.cpp's converter needs one of the fields {0} of config.json"
    ),
    _Failure(
        r"No module named '([\w.-]+)'",
        "llama.cpp's converter needs the package {0}",
        "pip install {0}, then export again",
    ),
    _Failure(
        r"No space left on device", "the disk is full", "free some space, or name a folder on another disk with --out"
    ),
)
"""Failures by the line that names them; the first one that matches counts."""


def explain_failure(script: str, stderr: str, exit_code: int) -> str:
    """Return one message about a converter that failed: the reason, and what works instead."""
    lines = [line.strip() for line in stderr.splitlines() if line.strip() and not line.startswith("INFO")]
    for line in reversed(lines):
        for failure in _FAILURES:
            if match := re.search(failure.pattern, line):
                groups = [sanitize_line(group, _MAX_LENGTH) for group in match.groups()]
                reason, fix = failure.reason.format(*groups), failure.fix.format(*groups)
                return f"llama.cpp's {script} failed: {reason}. Fix: {fix}."
    return f"llama.cpp's {script} failed: {_quote(lines, exit_code)}. Fix: {_OTHER_FORMATS}."


def _quote(lines: Sequence[str], exit_code: int) -> str:
    """Return the last line of a converter without folders and level, or its exit code if it printed nothing."""
    if not lines:
        return "its process was ended" if exit_code < 0 else f"exit code {exit_code}"
    text = re.sub(r"(?<![\w.])/(?:[^\s/'\":]+/)+", "", lines[-1].removeprefix("ERROR:"))
    return sanitize_line(text, _MAX_LENGTH).strip().rstrip(".")
