"""The result for one architecture."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

RESULTS = {
    "fast": "the fast path is on; every check passed",
    "works": "trains on the stock path; every check passed",
    "limited": "trains; a parity check refused the merged model or the parcel, in bf16 and in fp32",
    "refused": "refused by one message before training",
    "no base": "Transformers itself cannot build, save, read or train such a small model here",
    "FAULT": "a traceback, an error after training began, or a wrong result with exit code 0",
}


@dataclass
class Case:
    """The result for one architecture: one of RESULTS, a reason and what was measured."""

    model_type: str
    result: str = ""
    detail: str = ""
    weights: int = 0
    seconds: float = 0.0
    figures: dict[str, Any] = field(default_factory=dict)

    def end(self, result: str, detail: str = "") -> "Case":
        """Set the result and return the case."""
        self.result, self.detail = result, detail
        return self


def count_results(cases: Sequence[Case]) -> dict[str, int]:
    """Return the number of cases for each of RESULTS."""
    return {result: sum(case.result == result for case in cases) for result in RESULTS}
