"""Trainer callbacks, one per file.

- checkpoint: A trainer callback that decides when a checkpoint is written, and makes it count once it is
- gradient_checkpointing: Recompute the activations of some decoder layers only
- learning_rate: A trainer callback
- memory_check: The largest micro-batch of the data, tried before the first step
- metrics: A trainer callback that follows each step
- nonfinite_guard: A trainer callback that looks at a step before the optimizer sees it
"""
