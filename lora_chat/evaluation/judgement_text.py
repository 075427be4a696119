"""The result of human votes as text, in the same words on the terminal, on pages, on cards and in receipts."""

from lora_chat.evaluation.intervals import Interval
from lora_chat.evaluation.judgements import JudgementResult, PairCounts, PreferenceFigures


def format_result(result: JudgementResult) -> str:
    """Format the result of a comparison in one sentence."""
    names = result.comparison.a.name, result.comparison.b.name
    return format_judgement(*names, result.counts, result.figures, result.votes, result.judges, result.equal_replies)


def format_judgement(
    a: str, b: str, counts: PairCounts, figures: PreferenceFigures, votes: int, judges: int, equal_replies: int
) -> str:
    """Format counts, interval, test and number of votes of A against B in one sentence."""
    equal = f"{_count(equal_replies, 'pair')} had equal replies and {'was' if equal_replies == 1 else 'were'} not shown"
    if figures.word == "not measured":
        return f"Not measured by human judgement: no votes{f'; {equal}' if equal_replies else ''}."
    parts = [
        f"{_format_word(figures)}: {_format_preference(a, b, counts, figures)}",
        f"{_count(counts.ties, 'tie')}, {counts.both_bad:,} both bad",
        f"{_count(votes, 'vote')} by {_count(judges, 'judge')} on {_count(counts.pairs, 'pair')}",
        *([equal] if equal_replies else []),
    ]
    return f"{'; '.join(parts)}."


def _format_word(figures: PreferenceFigures) -> str:
    """Format the word of the verdict with the number of votes that would be needed."""
    needed = f" (needs about {_count(figures.needed_votes, 'vote')})" if figures.needed_votes else ""
    return f"{figures.word.capitalize()} by human judgement{needed}"


def _format_preference(a: str, b: str, counts: PairCounts, figures: PreferenceFigures) -> str:
    """Format how often A was preferred to B, with interval and test."""
    if figures.win_rate is None or figures.win_rate_interval is None or figures.p_value is None:
        return f"no pair of {a} and {b} has a preferred reply"
    return (
        f"{a} was preferred to {b} in {counts.wins:,} of {_count(counts.decided, 'decided pair')} "
        f"({figures.win_rate:.1%}, 95 % interval {format_share_interval(figures.win_rate_interval)}, "
        f"sign test {format_p_value(figures.p_value)})"
    )


def format_share_interval(interval: Interval) -> str:
    """Format the interval of a share in percent."""
    return f"{interval[0]:.1%} to {interval[1]:.1%}"


def format_p_value(value: float) -> str:
    """Format a p-value with its letter."""
    return "p < 0.001" if value < 0.001 else f"p = {value:.3f}"


def format_notes(result: JudgementResult) -> list[str]:
    """Return sentences on the position of preferred replies and on the agreement of judges."""
    position, agreement = result.position, result.agreement
    notes = []
    if position.share is not None and position.p_value is not None:
        notes.append(
            f"The left reply was preferred in {position.left:,} of {position.left + position.right:,} votes "
            f"({position.share:.1%}, {format_p_value(position.p_value)} without a bias)."
        )
    if agreement is not None:
        notes.append(
            f"Two judges of the same pair agreed in {agreement.equal:,} of {agreement.compared:,} cases "
            f"({agreement.equal / agreement.compared:.1%})."
        )
    return notes


def _count(number: int, noun: str) -> str:
    """Format a number with its noun."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
