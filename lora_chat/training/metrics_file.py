"""The metrics of a run: one JSON object a line, none twice, none missing, whatever happened in between."""

import json
from pathlib import Path
from typing import Any

from lora_chat.writing import write_text_whole


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The rows; a last line that was not finished is left out."""
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
        try:
            rows.append(json.loads(line))
        except ValueError:
            break
    return rows


def cut_metrics(path: Path, step: int) -> dict[str, Any]:
    """Leave what stands there up to a step, for training goes on behind it; the last step's row, or nothing."""
    rows = [row for row in read_metrics(path) if row["step"] <= step]
    write_text_whole(path, "".join(json.dumps(row) + "\n" for row in rows), "metrics")
    return next((row for row in reversed(rows) if "loss" in row), {})
