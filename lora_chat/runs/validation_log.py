"""The log of the validation measurements of a run, and which steps may still be kept after each of them.

It is written as a whole, atomically, because it decides which weights a resumed run loads. It is signed with the user's
key like a checkpoint, because these weights end in an adapter that is signed as the user's own.
"""

import json
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from lora_chat.errors import IntegrityError, LoraChatError
from lora_chat.system.atomic_write import write_text_atomically
from lora_chat.system.bounded_files import MEDIUM_FILE_BYTES, read_json_object
from lora_chat.system.user_key import is_signed, sign

_SIGNATURE_PURPOSE = "validation log 1"
_MAX_STEP = 10**12
_NUM_FIELDS = 6
"""Number of keys of a row."""
_DIGEST = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class MeasuredLoss:
    """One measurement of the validation set."""

    step: int
    """Number of optimizer steps before it."""
    validation_loss: float | None
    """Mean loss of a supervised token, in nats; None if it is not finite."""
    token_accuracy: float
    """Share of the supervised tokens that the model predicts, 0 to 1."""
    candidates: Mapping[int, str] = field(default_factory=dict)
    """The steps that may still be kept after it, in ascending order, with the SHA-256 of their copies. The first one is
    kept if training ends here."""
    difference: float = 0.0
    """How much worse this step is than the first candidate, in the unit of the measure that chooses."""
    standard_error: float = 0.0
    """Standard error of the difference."""

    def as_dict(self) -> dict[str, object]:
        """Return the measurement for JSON."""
        return {
            "step": self.step,
            "validation_loss": self.validation_loss,
            "token_accuracy": self.token_accuracy,
            "candidates": {str(step): digest for step, digest in self.candidates.items()},
            "difference": self.difference,
            "standard_error": self.standard_error,
        }


@dataclass(frozen=True)
class ValidationLog:
    """All measurements of a run in the order of their steps."""

    rows: tuple[MeasuredLoss, ...] = ()
    signed_by_user: bool = True
    """Whether this user's key signed the log; an empty log needs no signature."""

    @property
    def chose_step(self) -> bool:
        """Return whether the measurements chose one of several steps."""
        return len(self.rows) > 1 and bool(self.rows[-1].candidates)


def read_validation_log(path: Path) -> ValidationLog:
    """Return the log; an empty one if there is no file. Raise IntegrityError for a damaged one."""
    try:
        content = read_json_object(path, MEDIUM_FILE_BYTES, strict=True)
    except FileNotFoundError:
        return ValidationLog()
    try:
        mac = content.pop("mac", None)
        rows = tuple(_parse_row(row) for row in content["rows"])
        steps = [row.step for row in rows]
        if set(content) != {"rows"} or steps != sorted(set(steps)):
            raise ValueError("the steps are not in order")
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise IntegrityError(
            f"{path} is damaged: it is not a log that training writes.\n"
            "Fix: train again without --resume, or keep the last step: delete the file, and use --resume "
            "--set training.keep=last --accept-change training.keep."
        ) from error
    signed = False
    with suppress(OSError, LoraChatError):
        signed = isinstance(mac, str) and mac.isascii() and is_signed(_SIGNATURE_PURPOSE, _encode(rows), mac)
    return ValidationLog(rows, signed or not rows)


def write_validation_log(path: Path, rows: Sequence[MeasuredLoss]) -> None:
    """Write the log, signed if the user has a key. Raise DiskFullError, DiskError or UsageError."""
    content: dict[str, object] = {"rows": [row.as_dict() for row in rows]}
    with suppress(OSError, LoraChatError):
        content["mac"] = sign(_SIGNATURE_PURPOSE, _encode(rows))
    write_text_atomically(path, json.dumps(content) + "\n", "the validation log")


def _encode(rows: Sequence[MeasuredLoss]) -> bytes:
    return json.dumps([row.as_dict() for row in rows], sort_keys=True, separators=(",", ":")).encode("ascii")


def _parse_row(row: dict[str, object]) -> MeasuredLoss:
    """Return the measurement of a row. Raise ValueError, KeyError or TypeError if it is not one."""
    step, loss, candidates = row["step"], row["validation_loss"], row["candidates"]
    accuracy, difference, error = row["token_accuracy"], row["difference"], row["standard_error"]
    if len(row) != _NUM_FIELDS or type(step) is not int or not 0 < step < _MAX_STEP:
        raise ValueError("the step is not a number of steps")
    if not isinstance(candidates, dict) or not (loss is None or type(loss) is float):
        raise TypeError("the loss is not a number")
    if type(accuracy) is not float or type(difference) is not float or type(error) is not float:
        raise TypeError("a figure is not a number")
    steps = {int(name): digest for name, digest in candidates.items() if name.isascii() and name.isdecimal()}
    if len(steps) != len(candidates) or list(steps) != sorted(steps) or any(not 0 < s <= step for s in steps):
        raise ValueError("the candidates are not steps")
    if not all(isinstance(digest, str) and _DIGEST.fullmatch(digest) for digest in steps.values()):
        raise ValueError("a digest is not a SHA-256")
    return MeasuredLoss(step, loss, accuracy, steps, difference, error)
