"""The settings `turns` and `loss` of data and of its sources, and how they go together."""

from typing import Literal

Turns = Literal["all", "last"]
Loss = Literal["replies", "all", "last"]


def check_loss(turns: Turns | None, loss: Loss | None) -> None:
    """Raise ValueError if `turns` and `loss` contradict each other."""
    if loss == "all" and turns == "last":
        raise ValueError("`loss: all` contradicts `turns: last`; remove one of them")
    if loss == "last" and turns == "all":
        raise ValueError("`loss: last` contradicts `turns: all`; remove one of them")


def resolve_loss(
    turns: Turns | None, loss: Loss | None, default_turns: Turns, default_loss: Loss
) -> tuple[Turns, Loss]:
    """Return the settings of a source; one that is set there decides over both defaults."""
    if loss == "last" or (loss is None and turns == "last"):
        return "last", "last"
    if loss == "all":
        return "all", "all"
    if loss == "replies":
        return turns or ("all" if default_loss == "last" else default_turns), loss
    if turns == "all":
        return "all", "replies" if default_loss == "last" else default_loss
    return default_turns, default_loss
