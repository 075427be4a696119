"""Print the points of `make crash-test` as the table of CRASHES.md: python benchmarks/crash_table.py FILE."""

import json
import platform
import sys
from collections import Counter
from importlib import metadata
from pathlib import Path
from typing import Any

ENDS = {"kill": {-9, 0}, "torn": {-9, 0}, "full": {4, 0}, "broken": {10, 0}}
"""Exit codes with which a run may end; 0 if nothing was left to write. A traceback is never expected."""
MEANING = {
    "kill": "`kill -9` at the operation",
    "torn": "half of a write, then `kill -9`",
    "full": "no space left (ENOSPC) from the operation on",
    "broken": "failing disk (EIO) from the operation on",
}


def main() -> None:
    """Print the table and every unexplained point."""
    rows = [json.loads(line) for line in Path(sys.argv[1]).read_text().splitlines()]
    points = [row for row in rows if "mode" in row]
    operations = max(len(row["operations"]) for row in rows if "operations" in row)
    print(f"{operations} file operations in a run; {len(points)} points.\n")
    print(f"Python {platform.python_version()}, {_versions()}; {_processor()}\n")
    print("| failure | points | ended with | resumed to the same bytes | unexplained |")
    print("|---|---|---|---|---|")
    for mode, meaning in MEANING.items():
        mode_points = [point for point in points if point["mode"] == mode]
        ends = Counter(point["exit_code"] for point in mode_points)
        shown = ", ".join(f"{count} x {_end(code)}" for code, count in ends.most_common())
        same = sum(point["same"] for point in mode_points)
        unexplained = sum(not _explained(point) for point in mode_points)
        print(f"| {meaning} | {len(mode_points)} | {shown} | {same} | {unexplained} |")
    signals = [point for point in points if point["mode"] == "signals"]
    print(f"\nSignals: {len(signals)} points, {sum(point['same'] for point in signals)} resumed to the same bytes.")
    for point in points:
        if not _explained(point):
            print(f"\nunexplained: {point['mode']} at operation {point['point']} ({point['operation']})")


def _explained(point: dict[str, Any]) -> bool:
    ends = ENDS.get(point["mode"], {129, 130, 143})
    return point["same"] and point["exit_code"] in ends and "Traceback" not in point.get("output", "")


def _end(code: int) -> str:
    return "killed" if code == -9 else f"exit {code}"


def _versions() -> str:
    return ", ".join(f"{name} {metadata.version(name)}" for name in ("torch", "transformers", "trl", "peft"))


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.split(": ")[1] for line in lines if line.startswith("model name")), platform.machine())


if __name__ == "__main__":
    main()
