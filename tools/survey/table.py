"""The results as a table in Markdown."""

import re
from collections.abc import Sequence
from importlib.metadata import version

from survey.case import RESULTS, Case, count_results

_BEGIN, _END = "<!-- table: begin -->", "<!-- table: end -->"


def format_table(cases: Sequence[Case], page: str) -> str:
    """Return the page with the results between its two marks."""
    before, rest = page.split(_BEGIN)
    after = rest.split(_END)[1]
    counts = ", ".join(f"{count} {result}" for result, count in count_results(cases).items() if count)
    versions = ", ".join(f"{name} {version(name)}" for name in ("transformers", "peft", "trl", "torch"))
    lines = [
        f"{len(cases)} architectures with {versions}: {counts}.",
        "",
        "| `model_type` | Result | Reason |",
        "|---|---|---|",
    ]
    lines += [f"| `{case.model_type}` | {case.result} | {_cell(case.detail)} |" for case in sorted(cases, key=_order)]
    return "\n".join([before + _BEGIN, *lines, _END + after])


def _order(case: Case) -> tuple[int, str]:
    return list(RESULTS).index(case.result), case.model_type


def _cell(text: str) -> str:
    """Return a reason as the text of a cell, without what is the same in every run."""
    text = text.removeprefix("Error: ").removeprefix("The fast path is off, because ").split(" Fix: ")[0]
    text = text.replace(" Training is slower, with the same result.", "")
    text = re.sub(r"relative error [\d.]+, limit [\d.]+", "relative error over its limit", text)
    return re.sub(r"\s+", " ", text).replace("|", "\\|")[:240]
