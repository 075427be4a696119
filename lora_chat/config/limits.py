"""Limits that the planner and the code that obeys them share."""

WEIGHT_CACHE_LIMIT_BYTES = 2**30
"""Bytes of values that are held beside all quantised weights on a CPU; a base that would take more makes them anew."""


PARITY_MAX_DIALOGUES, PARITY_MAX_NEW_TOKENS = 16, 32
"""Held-out dialogues that a proof asks, and greedy tokens of its replies: a handful says enough."""
