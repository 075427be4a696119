"""How far a delivered model may be from the adapted one, per format, with the reason."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """What a proof may find at most."""

    mean_kl: float
    """Nats per supervised token."""
    same_top_token: float
    """Least share of places."""
    loss_rise: float
    """Nats per supervised token; a lower loss is no failure."""
    reason: str


_ROUNDING = "the same weights rounded once to 16 bits"
LIMITS = {
    "merged model": Limits(1e-2, 0.97, 0.02, _ROUNDING),
    "merged model of an 8-bit base": Limits(5e-2, 0.95, 0.05, "LLM.int8 also rounds activations, a merge does not"),
    "model merged into the original weights": Limits(
        0.3, 0.80, 0.15, "other weights than those that were trained against"
    ),
}


def limits_of(what: str) -> Limits:
    """The limits of a format."""
    return LIMITS[what]
