"""Limits that the planner and other packages share."""

WEIGHT_CACHE_LIMIT_BYTES = 2**30
"""Maximum size of the cache of dequantized weights on a CPU, in bytes. A larger base dequantizes on the fly."""

INT8_CHUNK_BYTES = 2**26
"""Temporary fp32 values, in bytes, when 8-bit weights are dequantized on a GPU."""

PARITY_MAX_DIALOGUES, PARITY_MAX_NEW_TOKENS = 16, 32
"""Number of held-out dialogues in a parity check, and number of greedy tokens per reply. A few are
enough to detect a wrong export."""
PARITY_MAX_TOKENS, PARITY_MAX_POSITIONS = 2048, 256
"""Largest number of tokens and of supervised tokens of a parity sample, which bounds the memory of the logits."""

MAX_EVALUATION_LOGITS = 2**25
"""Number of logits computed together when a loss is only measured."""

MIN_ROWS_TO_CHOOSE = 8
"""Smallest number of validation rows by which a training step is chosen. Fewer say too little about the noise."""

MAX_STEP_COPIES = 4
"""Largest number of measured steps whose weights are kept until the best of them is chosen."""

LM_HEAD_CPU_BUFFER_ROWS, LM_HEAD_GPU_BUFFER_LOGITS = 256, 2**25
"""Positions whose logits the fast path computes together on a CPU, and logits on a GPU, which wants more rows."""

GENERAL_MIN_ITEMS, GENERAL_MAX_NEW_TOKENS = 40, 32
"""Number of general items that are always asked, and largest number of tokens in a reply to one."""
GENERAL_TIME_SHARE = 0.1
"""Largest share of the planned training time that a comparison spends on more than GENERAL_MIN_ITEMS items."""
