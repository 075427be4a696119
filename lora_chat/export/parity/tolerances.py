"""How far a delivered model may be from the adapted one, per format, with the reason."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Tolerances:
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


_SAME_WEIGHTS_REASON = "the same weights, rounded to 16 bits at most once"
_OTHER_WEIGHTS_REASON = "other weights than those that were trained against"
TOLERANCES = {
    "merged model": Tolerances(1e-2, 0.92, 0.02, 0.25, _SAME_WEIGHTS_REASON),
    "merged model of an 8-bit base": Tolerances(
        5e-2, 0.90, 0.05, 0.1, "LLM.int8 rounds activations too, a merge does not"
    ),
    "model merged into the original weights": Tolerances(0.3, 0.70, 0.15, 0.0, _OTHER_WEIGHTS_REASON),
    "GGUF f32": Tolerances(1e-2, 0.92, 0.02, 0.25, _SAME_WEIGHTS_REASON),
    "GGUF f16": Tolerances(1e-2, 0.92, 0.02, 0.25, _SAME_WEIGHTS_REASON),
    "GGUF bf16": Tolerances(1e-2, 0.92, 0.02, 0.25, _SAME_WEIGHTS_REASON),
    "GGUF q8_0": Tolerances(2e-2, 0.92, 0.03, 0.2, "8.5 bits a weight"),
    "GGUF q6_k": Tolerances(4e-2, 0.90, 0.05, 0.1, "6.6 bits a weight"),
    "GGUF q5_k_m": Tolerances(8e-2, 0.87, 0.08, 0.0, "5.7 bits a weight"),
    "GGUF q5_k_s": Tolerances(8e-2, 0.87, 0.08, 0.0, "5.5 bits a weight"),
    "GGUF q4_k_m": Tolerances(0.15, 0.82, 0.12, 0.0, "4.9 bits a weight"),
    "GGUF q4_k_s": Tolerances(0.2, 0.80, 0.15, 0.0, "4.6 bits a weight"),
    "GGUF q3_k_m": Tolerances(0.5, 0.65, 0.3, 0.0, "3.9 bits a weight: replies change visibly"),
    "PEFT adapter": Tolerances(1e-2, 0.92, 0.02, 0.25, "the same numbers in the same arithmetic, but for its order"),
    "GGUF adapter": Tolerances(1e-2, 0.92, 0.02, 0.25, "the same numbers, added while it runs"),
}
"""KL decides. Most likely tokens and replies tell less where a model hesitates; theirs catch what is plainly wrong.

Measured on the quickstart (README): five to twenty times nearer in KL. A small model feels rounding most.
"""


def tolerances_for(what: str) -> Tolerances:
    """The limits of a format."""
    return TOLERANCES[what]
