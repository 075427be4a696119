"""Limits that the planner and the code that obeys them share."""

MOST_HELD = 2**30
"""Bytes of values that are held beside all quantised weights on a CPU; a base that would take more makes them anew."""


PROVEN_DIALOGUES, PROVEN_TOKENS = 16, 32
"""Held-out dialogues that a proof asks, and greedy tokens of its replies: a handful says enough."""
