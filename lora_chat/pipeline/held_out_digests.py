"""Digests of what is measured during and after training, which must be the same in all processes of a run."""

import hashlib
import json
from typing import TYPE_CHECKING

from lora_chat.pipeline.row_digest import digest_rows

if TYPE_CHECKING:
    from lora_chat.pipeline.prepare import PreparedEvaluation


def digest_held_out(prepared: "PreparedEvaluation") -> dict[str, str]:
    """Return the digests of the held-out data, by the name that messages use.

    They are not part of the identity of a run, because they do not change the trained weights of a step.
    """
    questions = [[question.question, *question.accept] for question in prepared.questions]
    general = [item.as_row for item in prepared.general.items] if prepared.general else []
    return {
        "the validation set": digest_rows(prepared.validation),
        "the test set": digest_rows(prepared.test),
        "the questions": _digest_values(questions),
        "the general items": _digest_values(general),
        "the system message": _digest_values(prepared.identity.system),
        "the stop tokens": _digest_values(sorted(prepared.stop_ids)),
    }


def _digest_values(values: object) -> str:
    """Return the SHA-256 of plain values."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
