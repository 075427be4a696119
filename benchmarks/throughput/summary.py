"""Summarise runs: medians, spread, losses against a reference, share of the ceiling."""

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from launching import Run


@dataclass(frozen=True)
class Summary:
    """One trainer on one data file, over all rounds. Rates leave the first steps out."""

    data: str
    trainer: str
    runs: int
    supervised_per_second: float
    slowest: float
    fastest: float
    supervised_per_cpu_second: float
    dialogues_per_second: float
    tokens_per_second: float
    peak_rss_bytes: int
    start_seconds: float
    worst_loss_difference: float | None
    """Largest |loss - reference| / reference of a step; None if steps contain other dialogues."""
    mean_loss_difference: float | None
    ceiling_share: float
    others_cpus: float
    """Largest number of processors that other programs used during a run. Above about 0.2, times are unreliable."""


def rate(result: dict[str, Any], what: str, seconds: str, warmup: int) -> float:
    """Return a rate per second after the first steps."""
    return float(sum(result[what][warmup:]) / sum(result[seconds][warmup:]))


def loss_differences(losses: Sequence[float], reference: Sequence[float]) -> list[float]:
    """Return the relative difference of each step."""
    return [abs(a - b) / b for a, b in zip(losses, reference, strict=True)]


def summarise(
    runs: Sequence[Run],
    warmup: int,
    reference: Sequence[float] | None,
    flops_per_token: float,
    ceilings: Sequence[float],
) -> Summary | None:
    """Summarise all runs of one trainer on one file; return None if all failed. `ceilings` are in GFLOP/s per round."""
    results = [run.result for run in runs if run.result is not None]
    if not results:
        return None

    def middle(what: str, seconds: str = "step_seconds") -> float:
        return statistics.median(rate(result, what, seconds, warmup) for result in results)

    rates = [rate(result, "supervised_tokens", "step_seconds", warmup) for result in results]
    differences = None
    if reference is not None:
        differences = [value for result in results for value in loss_differences(result["losses"], reference)]
    return Summary(
        data=runs[0].data,
        trainer=runs[0].trainer,
        runs=len(results),
        supervised_per_second=statistics.median(rates),
        slowest=min(rates),
        fastest=max(rates),
        supervised_per_cpu_second=middle("supervised_tokens", "step_cpu_seconds"),
        dialogues_per_second=middle("dialogues"),
        tokens_per_second=middle("tokens"),
        peak_rss_bytes=max(result["peak_rss_bytes"] for result in results),
        start_seconds=statistics.median(result["start_seconds"] for result in results),
        worst_loss_difference=max(differences) if differences else None,
        mean_loss_difference=statistics.fmean(differences) if differences else None,
        ceiling_share=statistics.median(
            rate(run.result, "tokens", "step_seconds", warmup) * flops_per_token / 1e9 / ceilings[run.round]
            for run in runs
            if run.result is not None
        ),
        others_cpus=max(result["others_cpus"] for result in results),
    )


_COLUMNS: tuple[tuple[str, int, Callable[[Summary, float], str]], ...] = (
    ("supervised/s", 12, lambda summary, _: f"{summary.supervised_per_second:.1f}"),
    ("min..max", 16, lambda summary, _: f"{summary.slowest:.1f}..{summary.fastest:.1f}"),
    ("a CPU s", 8, lambda summary, _: f"{summary.supervised_per_cpu_second:.1f}"),
    ("dialogues/s", 11, lambda summary, _: f"{summary.dialogues_per_second:.2f}"),
    ("ours is x", 9, lambda summary, ours: f"{ours / summary.supervised_per_second:.2f}" if ours else "-"),
    ("peak GiB", 8, lambda summary, _: f"{summary.peak_rss_bytes / 2**30:.2f}"),
    ("start s", 7, lambda summary, _: f"{summary.start_seconds:.1f}"),
    ("loss off, worst", 15, lambda summary, _: _percent(summary.worst_loss_difference)),
    ("mean", 7, lambda summary, _: _percent(summary.mean_loss_difference)),
    ("of ceiling", 10, lambda summary, _: f"{summary.ceiling_share:.0%}"),
    ("others CPUs", 11, lambda summary, _: f"{summary.others_cpus:.2f}"),
)


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.2%}"


def table(data: str, names: Sequence[str], summaries: dict[str, Summary]) -> str:
    """Return a table with one line per trainer; a failed trainer is marked."""
    ours = summaries["ours"].supervised_per_second if "ours" in summaries else 0.0
    width = max(len(name) for name in [data, *names])
    lines = [f"{data:{width}} " + " ".join(f"{title:>{size}}" for title, size, _ in _COLUMNS)]
    for name in names:
        summary = summaries.get(name)
        cells = " ".join(f"{show(summary, ours):>{size}}" for _, size, show in _COLUMNS) if summary else "failed"
        lines.append(f"{name:{width}} {cells}")
    return "\n".join(lines)
