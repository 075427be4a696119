"""Limits that the planner and other packages share."""

WEIGHT_CACHE_LIMIT_BYTES = 2**30
"""Maximum size of the cache of dequantized weights on a CPU, in bytes. A larger base dequantizes on the fly."""


PARITY_MAX_DIALOGUES, PARITY_MAX_NEW_TOKENS = 16, 32
"""Number of held-out dialogues in a parity check, and number of greedy tokens per reply. A few are
enough to detect a wrong export."""
