"""Format the results of the check as a table for people."""

from typing import Any

from part_process import PartResult

_MAX_TEXT = 76


def format_table(results: list[PartResult]) -> str:
    """Format one row for each part, and its figures below it."""
    lines = [f"{'part':12} {'status':8} {'seconds':>7}  result", "-" * 110]
    for result in results:
        passed = sum(check["passed"] for check in result.checks)
        text = result.reason or f"{passed} checks passed"
        first, *rest = _wrap(text)
        lines.append(f"{result.name:12} {result.status:8} {result.seconds:7.0f}  {first}")
        lines += [f"{'':31}{line}" for line in rest]
        for name, values in result.figures.items():
            lines += [f"{'':13}{line}" for line in _wrap(f"{name}: {_format_values(values)}", 96)]
    return "\n".join(lines)


def format_verdict(results: list[PartResult], seconds: float, *, emulated: bool) -> str:
    """Format the last line: counts, time and failed parts."""
    counts = {
        status: [result.name for result in results if result.status == status] for status in ("ok", "failed", "skipped")
    }
    words = [f"{len(names)} {status}" for status, names in counts.items() if names or status == "ok"]
    verdict = "FAILED: " + ", ".join(counts["failed"]) if counts["failed"] else "PASSED"
    where = "on an emulated card, so speeds and memory say nothing" if emulated else "on this device"
    return f"\n{verdict} ({', '.join(words)}) in {seconds:.0f} s {where}."


def _format_values(values: dict[str, Any]) -> str:
    return ", ".join(f"{name} {_format_value(value)}" for name, value in values.items())


def _format_value(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, dict):
        return "(" + _format_values(value) + ")"
    if isinstance(value, list):
        return "[" + " ".join(_format_value(item) for item in value) + "]"
    return str(value)


def _wrap(text: str, width: int = _MAX_TEXT) -> list[str]:
    """Split a text into lines of at most `width` characters, at spaces."""
    lines = [""]
    for word in text.split():
        if lines[-1] and len(lines[-1]) + 1 + len(word) > width:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".lstrip()
    return lines
