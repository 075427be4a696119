"""Write and read the records of a part: lines of JSON, so that a part that is stopped keeps its figures."""

import json
import os
import time
from pathlib import Path
from typing import Any

RECORDS_VARIABLE = "GPU_CHECK_RECORDS"
"""Environment variable with the file of a part's records."""
DEADLINE_VARIABLE = "GPU_CHECK_DEADLINE"
"""Environment variable with the time (seconds since 1970) by which a part should have ended."""


class Records:
    """The records of the part that runs in this process."""

    def __init__(self) -> None:
        self._path = Path(os.environ[RECORDS_VARIABLE])

    def add_figures(self, name: str, /, **values: Any) -> None:
        """Record figures under a name."""
        self._append({"figures": name, "values": values})

    def check(self, name: str, passed: bool, detail: str = "") -> bool:
        """Record whether something is as it should be, with the detail of a failure. Return `passed`."""
        self._append({"check": name, "passed": bool(passed), "detail": "" if passed else detail})
        return passed

    def skip(self, name: str, reason: str) -> None:
        """Record that something was not tried, with the reason."""
        self._append({"skipped": name, "reason": reason})

    def _append(self, record: dict[str, Any]) -> None:
        with self._path.open("a", encoding="utf-8") as lines:
            lines.write(json.dumps(record) + "\n")


def seconds_left() -> float:
    """Return the seconds until the part should have ended."""
    return float(os.environ[DEADLINE_VARIABLE]) - time.time()


def read_records(path: Path) -> list[dict[str, Any]]:
    """Read the records of a part; an unfinished last line is left out."""
    if not path.exists():
        return []
    records = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return records
