"""Largest differences that a parity check allows between an exported model and the adapted model, with reasons."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Tolerances:
    """Limits of one parity check.

    KL divergence decides. Most likely tokens and replies are less reliable where the model is uncertain; their limits
    only catch gross errors. On the quickstart, measured KL divergences were 5 to 20 times below the limits (README);
    rounding affects small models most.
    """

    mean_kl: float
    """Largest mean KL divergence, in nats per supervised token."""
    same_top_token: float
    """Smallest share of positions with the same most likely token."""
    loss_rise: float
    """Largest increase of the loss, in nats per supervised token. A decrease never fails."""
    equal_replies: float
    """Smallest share of equal greedy replies. Two tokens of nearly equal probability change the rest of a reply."""
    reason: str


SAME_WEIGHTS_REASON = "the same weights, rounded to 16 bits at most once"
FOLDER_TOLERANCES = {
    "merged model": Tolerances(1e-2, 0.92, 0.02, 0.25, SAME_WEIGHTS_REASON),
    "merged model of an 8-bit base": Tolerances(
        5e-2, 0.90, 0.05, 0.1, "LLM.int8 rounds activations too, a merge does not"
    ),
    "model merged into the original weights": Tolerances(0.3, 0.70, 0.15, 0.0, "other weights than in training"),
    "PEFT adapter": Tolerances(1e-2, 0.92, 0.02, 0.25, "the same numbers and arithmetic, in another order"),
    "MLX adapter": Tolerances(1e-2, 0.92, 0.02, 0.25, "the same numbers, read again from the file"),
    "GGUF adapter": Tolerances(1e-2, 0.92, 0.02, 0.25, "the same numbers, added at run time"),
}
"""Tolerances of everything but the GGUF types, by the name of the parity report."""
REFERENCE_LIMITS = {"same precision": 1e-2, "other precision": 3e-2, "other mode": 0.3}
"""Largest mean KL of a loaded adapter to the reference of its training, in nats per token, by their precisions.

The first is the limit of a PEFT adapter. Another dtype or device adds its rounding, and another mode of quantization
has other weights, as a merge into the original ones does.
"""
