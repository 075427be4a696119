"""Whether a second card pays off, as text."""

import math

from lora_chat.planning.card_table import WORTHWHILE_SPEED_UP, CardRow, CardTable
from lora_chat.planning.estimate import RunEstimate
from lora_chat.planning.format import format_duration, format_gib
from lora_chat.system.console import format_bytes

_LARGE_SHARE = 0.8
"""Share of a step's tokens from which on dividing it by two is not worthwhile."""
_STEP_PHASES = ("train", "validate")
"""Phases whose time grows with the steps of a run."""


def format_card_table(table: CardTable, command: str) -> str:
    """Format the table and the advice; `command` is the command line of `sft` without the number of processes."""
    single = table.rows[0].estimate
    link = table.link
    lines = [
        "Cards     each trains on its share of a step; the gradient of the adapter, "
        f"{format_bytes(table.gradient_bytes)}, is summed over all cards",
        f"Link      {link.name}, {link.bandwidth / 1e9:.1f} GB/s in each direction, from {link.source}",
        "",
        f"{'cards':<8}{'base':<10}{'GiB each':>9}{'time':>10}{'speed-up':>10}{'waits/step':>12}",
        *(_format_row(row) for row in table.rows),
        "",
        f"Advice    {format_advice(table)}",
    ]
    best = table.recommended
    if best is not None and best.cards > 1:
        shard = " --set base.shard=true" if best.sharded else ""
        lines += [
            f"Command   lora-chat {command}{shard} --processes {best.cards}",
            f"          or torchrun --nproc-per-node {best.cards} -m lora_chat {command}{shard}",
        ]
    if best is not None and best.sharded:
        lines += [f"Note      {note}" for note in best.estimate.notes if note not in single.notes]
    if single.target.device == "cuda":
        lines.append("Note      No figure for several cards has been measured; NCCL's own buffers are not included.")
    return "\n".join(lines)


def _format_row(row: CardRow) -> str:
    """Format one row of the table."""
    seconds = format_duration(row.seconds) if row.seconds is not None else "-"
    speed_up = f"{row.speed_up:.2f}" if row.speed_up is not None and row.fits else "-"
    communication = row.estimate.communication
    waits = _format_wait(communication.step + communication.gather) if communication else "-"
    base = "sharded" if row.sharded else "whole"
    return (
        f"{row.cards:<8}{base:<10}{format_gib(row.estimate.peak):>9}{seconds:>10}{speed_up:>10}{waits:>12}"
        f"  {row.estimate.verdict}"
    )


def _format_wait(seconds: float) -> str:
    """Format the seconds in which a step waits for other cards."""
    return f"{1000 * seconds:.1f} ms" if seconds < 1 else f"{seconds:.1f} s"


def format_advice(table: CardTable) -> str:
    """Return one sentence: whether a second card pays off, or how many cards are needed."""
    single, best = table.rows[0], table.recommended
    if not single.fits:
        if best is None:
            return (
                f"{table.rows[-1].cards} cards are too small, too, even with a sharded base: see `Change` above for "
                "settings that fit."
            )
        how = "with the base sharded over them" if best.sharded else "each with its share of a step"
        smallest = next(row for row in table.rows if row.fits and row.sharded == best.sharded)
        return f"One card is too small; the run fits {smallest.cards} cards, {how}."
    two = table.find(2)
    if two is None:
        return "Ask for more cards, such as --gpus 2."
    if not two.fits:
        return "The run fits one card, but not two with the same settings, because they also sum gradients."
    if single.seconds is None or two.seconds is None:
        return "The run fits one card. Whether a second one pays off is unknown, because its speed is unknown."
    times = f"{format_duration(two.seconds)} in place of {format_duration(single.seconds)}"
    ratio = single.seconds / two.seconds
    if ratio >= WORTHWHILE_SPEED_UP:
        return f"A second card pays off: the run is {ratio:.2f} times as fast, {times}."
    return f"A second card does not pay off: {times}. {_explain_small_gain(single.estimate, two.estimate)}"


def _explain_small_gain(single: RunEstimate, two: RunEstimate) -> str:
    """Return why a second card saves little time, and from how many steps on it pays off."""
    rows = min(single.plan.training.effective_batch_size, single.workload.rows)
    if rows == 1:
        return "A step has a single dialogue, so the second card has nothing to do."
    fixed, step = zip(_split_seconds(single), _split_seconds(two), strict=True)
    steps = _break_even_steps(fixed, step)
    if steps is None and two.own_step_tokens > _LARGE_SHARE * single.own_step_tokens:
        return (
            f"The longest dialogues of a step cannot be divided: one card gets {two.own_step_tokens:,.0f} of its "
            f"{single.own_step_tokens:,.0f} tokens. A larger training.effective_batch_size can be shared better."
        )
    if steps is None:
        return (
            f"A step of {single.own_step_tokens:,.0f} tokens is so short that starting operations takes most of the "
            "time. A larger training.effective_batch_size would be worth sharing."
        )
    return (
        f"The run is too short: {format_duration(fixed[0])} are not training. With these dialogues, a second card pays "
        f"off from about {steps:,} steps on; this run has {single.workload.steps:,}."
    )


def _split_seconds(estimate: RunEstimate) -> tuple[float, float]:
    """Return the seconds outside of training, and the seconds of a step."""
    durations = estimate.durations or {}
    training = sum(durations[name].likely for name in _STEP_PHASES if name in durations)
    total = sum(duration.likely for duration in durations.values())
    return total - training, training / estimate.workload.steps


def _break_even_steps(fixed: tuple[float, float], step: tuple[float, float]) -> int | None:
    """Return the steps from which on a second card pays off; None if it never does.

    The arguments are the seconds outside of training, and the seconds of a step, each of one card and of two.
    """
    gain = step[0] - WORTHWHILE_SPEED_UP * step[1]
    if gain <= 0:
        return None
    return max(1, math.ceil((WORTHWHILE_SPEED_UP * fixed[1] - fixed[0]) / gain))
