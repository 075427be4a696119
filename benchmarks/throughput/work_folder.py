"""The folder every trainer is measured from: rows that carry their labels, the base, one initial adapter, facts."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

IGNORED = -100
"""Label of a token that carries no loss."""
Row = dict[str, list[int]]


@dataclass(frozen=True)
class WorkFolder:
    """Where the parts are."""

    path: Path

    @property
    def rows(self) -> Path:
        """JSON lines of `input_ids` and `labels`, in the order of training."""
        return self.path / "rows.jsonl"

    @property
    def base(self) -> Path:
        """The base in Hugging Face layout (a link to it)."""
        return self.path / "base"

    @property
    def adapter(self) -> Path:
        """The initial LoRA weights, fp32, in PEFT's layout."""
        return self.path / "adapter"

    @property
    def facts(self) -> Path:
        """What the rows are: counts, checksum, versions."""
        return self.path / "facts.json"

    def read_rows(self) -> list[Row]:
        """All rows."""
        with self.rows.open(encoding="utf-8") as lines:
            return [json.loads(line) for line in lines]

    def read_facts(self) -> dict[str, Any]:
        """The facts."""
        facts: dict[str, Any] = json.loads(self.facts.read_text(encoding="utf-8"))
        return facts


@dataclass(frozen=True)
class StepWork:
    """What one optimizer step trains on."""

    dialogues: int
    tokens: int
    supervised_tokens: int


def count_supervised(labels: list[int]) -> int:
    """Tokens that are predicted; the first of a row never is."""
    return sum(label != IGNORED for label in labels[1:])


def work_of_steps(rows: list[Row], dialogues: list[int], per_step: int, steps: int) -> list[StepWork]:
    """What each step trains on when rows are taken in order; `dialogues` says how many each row holds.

    The last step of an epoch takes what is left, as Trainer does.
    """
    starts = range(0, len(rows), per_step)
    epoch = [
        StepWork(
            sum(dialogues[start : start + per_step]),
            sum(len(row["input_ids"]) for row in rows[start : start + per_step]),
            sum(count_supervised(row["labels"]) for row in rows[start : start + per_step]),
        )
        for start in starts
    ]
    return [epoch[step % len(epoch)] for step in range(steps)]
