"""Signals that a process sends to itself in the middle of a phase of a run."""

import os
import signal

from lora_chat.pipeline import compare, load_adapted, load_data, saved_training
from lora_chat.training import trainer
from lora_chat.training.callbacks import checkpoint
from lora_chat.training.callbacks.nonfinite_guard import NonFiniteGuard
from lora_chat.training.trainer import PackedSFTTrainer

PHASES = {
    "encoding": (load_data, "open_sources", 1),
    "loading": (load_adapted, "load_base_model", 1),
    "trying the largest micro-batch": (PackedSFTTrainer, "dry_run_step", 1),
    "in the middle of an accumulation": (PackedSFTTrainer, "_packed_loss", 5),
    "before the optimizer": (NonFiniteGuard, "on_pre_optimizer_step", 2),
    "writing a checkpoint": (trainer, "write_peft_adapter", 2),
    "committing": (checkpoint, "commit_checkpoint", 2),
    "deleting an old checkpoint": (checkpoint, "prune_checkpoints", 3),
    "measuring the validation loss": (PackedSFTTrainer, "score_rows", 1),
    "the last step": (NonFiniteGuard, "on_pre_optimizer_step", 4),
    "saving the adapter": (saved_training, "save_adapter", 1),
    "comparing": (compare, "compare_with_base", 1),
}
"""Phase -> owner, name and call number of the function in which the signals arrive."""


def send_signals_in(phase, signal_names):
    """Make this process send itself the signals when the phase begins."""
    owner, name, call_number = PHASES[phase]
    stock, calls = getattr(owner, name), []

    def call_and_signal(*args, **kwargs):
        calls.append(0)
        if len(calls) == call_number:
            for signal_name in signal_names:
                os.kill(os.getpid(), getattr(signal, signal_name))
        return stock(*args, **kwargs)

    setattr(owner, name, call_and_signal)
