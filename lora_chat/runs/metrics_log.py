"""The metrics file of a run: one JSON object per line, without gaps or repetitions after an interruption."""

import json
from dataclasses import dataclass
from pathlib import Path

from lora_chat.system.atomic_write import write_text_atomically
from lora_chat.system.bounded_files import MAX_LOG_BYTES, parse_bounded_json, read_bytes

MetricsRow = dict[str, float]
"""A row of the metrics file: figures of a step by their names."""


@dataclass(frozen=True)
class MetricsLog:
    """The rows of a metrics file."""

    rows: tuple[MetricsRow, ...]

    @property
    def supervised_tokens(self) -> int:
        """Return the supervised tokens trained up to the last step."""
        return int(self._last_training_row.get("supervised_tokens", 0))

    @property
    def seconds(self) -> float:
        """Return the seconds of training up to the last step."""
        return float(self._last_training_row.get("seconds", 0.0))

    def has_validation_loss(self, step: int) -> bool:
        """Return whether the file has the validation loss after a step."""
        return any(row["step"] == step and "validation_loss" in row for row in self.rows)

    @property
    def _last_training_row(self) -> MetricsRow:
        return next((row for row in reversed(self.rows) if "loss" in row), {})


def read_metrics(path: Path) -> list[MetricsRow]:
    """Return the rows of a metrics file up to the first damaged line, such as an unfinished last one."""
    rows: list[MetricsRow] = []
    raw = read_bytes(path, MAX_LOG_BYTES) if path.exists() else b""
    for line in raw.decode("utf-8", errors="replace").splitlines():
        try:
            row = parse_bounded_json(line)
        except ValueError:
            break
        if not isinstance(row, dict) or type(row.get("step")) is not int or not all(map(_is_number, row.values())):
            break
        rows.append(row)
    return rows


def _is_number(value: object) -> bool:
    return value is None or isinstance(value, int | float)


def truncate_metrics(path: Path, step: int) -> MetricsLog:
    """Delete the rows after a step, because training continues there. Return the remaining rows."""
    rows = [row for row in read_metrics(path) if row["step"] <= step]
    write_text_atomically(path, "".join(json.dumps(row) + "\n" for row in rows), "metrics")
    return MetricsLog(tuple(rows))
