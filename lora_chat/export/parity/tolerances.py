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
    equal_replies: float
    """Least share of greedy replies that are equal; two words of nearly equal weight change all that follows."""
    reason: str


_SAME = "the same weights, rounded to 16 bits at most once"
_OTHER = "other weights than those that were trained against"
LIMITS = {
    "merged model": Limits(1e-2, 0.92, 0.02, 0.25, _SAME),
    "merged model of an 8-bit base": Limits(5e-2, 0.90, 0.05, 0.1, "LLM.int8 rounds activations too, a merge does not"),
    "model merged into the original weights": Limits(0.3, 0.70, 0.15, 0.0, _OTHER),
    "GGUF f32": Limits(1e-2, 0.92, 0.02, 0.25, _SAME),
    "GGUF f16": Limits(1e-2, 0.92, 0.02, 0.25, _SAME),
    "GGUF bf16": Limits(1e-2, 0.92, 0.02, 0.25, _SAME),
    "GGUF q8_0": Limits(2e-2, 0.92, 0.03, 0.2, "8.5 bits a weight"),
    "GGUF q6_k": Limits(4e-2, 0.90, 0.05, 0.1, "6.6 bits a weight"),
    "GGUF q5_k_m": Limits(8e-2, 0.87, 0.08, 0.0, "5.7 bits a weight"),
    "GGUF q5_k_s": Limits(8e-2, 0.87, 0.08, 0.0, "5.5 bits a weight"),
    "GGUF q4_k_m": Limits(0.15, 0.82, 0.12, 0.0, "4.9 bits a weight"),
    "GGUF q4_k_s": Limits(0.2, 0.80, 0.15, 0.0, "4.6 bits a weight"),
    "GGUF q3_k_m": Limits(0.5, 0.65, 0.3, 0.0, "3.9 bits a weight: replies change visibly"),
    "PEFT adapter": Limits(1e-2, 0.92, 0.02, 0.25, "the same numbers in the same arithmetic, but for its order"),
    "GGUF adapter": Limits(1e-2, 0.92, 0.02, 0.25, "the same numbers, added while it runs"),
}
"""KL decides. Most likely tokens and replies tell less where a model hesitates; theirs catch what is plainly wrong.

Measured on the quickstart (README): five to twenty times nearer in KL. A small model feels rounding most.
"""


def limits_of(what: str) -> Limits:
    """The limits of a format."""
    return LIMITS[what]
