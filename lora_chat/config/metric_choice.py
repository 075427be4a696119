"""The choice of metrics in a recipe: their names, and the pattern of numeric match."""

import difflib
import math
import re
from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, StringConstraints

REPLY_METRICS = (
    *("exact_match", "contains", "token_f1", "numeric_match", "json_valid", "json_match", "tool_calls"),
    *("accuracy", "macro_precision", "macro_recall", "macro_f1", "rouge1", "rouge2", "rougeL", "bleu", "chrf"),
)
"""Names of the metrics of replies, as `METRICS` in evaluation/metrics.py has them."""
_ALWAYS_MEASURED = ("validation_loss", "perplexity", "token_accuracy", "facts")
_MAX_PATTERN_LENGTH = 300
"""Most characters of a pattern."""
_MAX_REPETITIONS = 10_000
"""Largest product of all counts such as {3,5} in a pattern, because the compiled pattern grows with it."""
_COUNT = re.compile(r"\{(\d+)(?:,(\d*))?\}")


def _read_names(value: object) -> object:
    """Return `auto` or a tuple of known names; a single name is a list of one. Raise ValueError for anything else."""
    if value == "auto":
        return value
    names = (value,) if isinstance(value, str) else value
    if not isinstance(names, list | tuple) or not names:
        raise ValueError(f"must be auto or a list of these metrics: {', '.join(REPLY_METRICS)}")
    for name in names:
        _check_name(name)
        if names.count(name) > 1:
            raise ValueError(f"{name} is in the list twice")
    return tuple(names)


def _check_name(name: object) -> None:
    """Raise ValueError for a name that is unknown or that belongs to a metric that is always measured."""
    if name in _ALWAYS_MEASURED:
        raise ValueError(f"{name} is always measured; list only metrics of replies")
    if name not in REPLY_METRICS:
        near = difflib.get_close_matches(str(name)[:100], REPLY_METRICS, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]}? " if near else ""
        raise ValueError(f"{str(name)[:100]!a} is an unknown metric; {hint}known metrics: {', '.join(REPLY_METRICS)}")


def _check_pattern(pattern: str) -> str:
    """Raise ValueError for a pattern that is no regular expression with one group, or that grows too large."""
    import regex

    counts = [max(int(low), int(high or 0)) for low, high in _COUNT.findall(pattern)]
    if math.prod(max(1, count) for count in counts) > _MAX_REPETITIONS:
        raise ValueError(f"the counts in braces multiply to more than {_MAX_REPETITIONS:,}")
    try:
        groups = regex.compile(pattern).groups
    except Exception as error:  # the module has errors of several kinds
        raise ValueError(f"is not a regular expression: {error}") from error
    if groups != 1:
        raise ValueError(
            f"has {groups} groups; put one pair of parentheses around the answer, such as 'answer is (.+)', and write "
            "other groups as (?:...)"
        )
    return pattern


MetricChoice = Annotated[Literal["auto"] | tuple[str, ...], BeforeValidator(_read_names)]
NumberPattern = Annotated[
    str, StringConstraints(min_length=1, max_length=_MAX_PATTERN_LENGTH), AfterValidator(_check_pattern)
]
