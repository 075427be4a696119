"""Describe the folder that every trainer reads: rows with labels, the base, one initial adapter, facts."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

IGNORED = -100
"""Label of a token without loss."""
Row = dict[str, list[int]]


@dataclass(frozen=True)
class WorkFolder:
    """Paths of the parts of a work folder."""

    path: Path

    @property
    def rows(self) -> Path:
        """Return the file with JSON lines of `input_ids` and `labels`, in the order of training."""
        return self.path / "rows.jsonl"

    @property
    def base(self) -> Path:
        """Return the link to the base in Hugging Face layout."""
        return self.path / "base"

    @property
    def adapter(self) -> Path:
        """Return the folder of the initial LoRA weights in PEFT's layout, in fp32."""
        return self.path / "adapter"

    @property
    def facts(self) -> Path:
        """Return the file with counts, checksum and versions of the rows."""
        return self.path / "facts.json"

    def read_rows(self) -> list[Row]:
        """Read all rows."""
        with self.rows.open(encoding="utf-8") as lines:
            return [json.loads(line) for line in lines]

    def read_facts(self) -> dict[str, Any]:
        """Read the facts."""
        facts: dict[str, Any] = json.loads(self.facts.read_text(encoding="utf-8"))
        return facts


@dataclass(frozen=True)
class StepWork:
    """The size of one optimizer step."""

    dialogues: int
    tokens: int
    supervised_tokens: int


def count_supervised(labels: list[int]) -> int:
    """Count the supervised tokens; the first token of a row never is one."""
    return sum(label != IGNORED for label in labels[1:])


def work_of_steps(rows: list[Row], dialogues: list[int], per_step: int, steps: int) -> list[StepWork]:
    """Return the size of each step if rows are taken in order. `dialogues` is the number of dialogues in each row.

    The last step of an epoch takes the remaining rows, as Trainer does.
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
