"""Callbacks of the trainer, one per file.

- agreement: Decisions and checksums of all processes after a step
- checkpoint: When checkpoints are written, and their commit
- frozen_start: The start of PiSSA and OLoRA, which is not trained
- gradient_checkpointing: Recomputed activations in some decoder layers only
- learning_rate: The plan's learning rate in a resumed run
- memory_check: Dry run of the largest micro-batch before the first step
- metrics: Metrics file, progress and stop requests
- nonfinite_guard: Refusal of steps and checkpoints with non-finite values
- reporter_guard: Protection against failing services that receive metrics
- step_schedule: Steps after which checkpoints are written and the validation set is measured
- validation: Measurement of the validation set, and early stopping
"""
