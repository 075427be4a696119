"""The sections `base`, `quantization`, `adapter` and `training` of a new recipe."""

from lora_chat.pipeline.new.profile import DataProfile
from lora_chat.pipeline.new.recipe_text import RecipeDraft
from lora_chat.pipeline.new.task_kinds import TaskKind

_SMALL_BASE, _LARGE_BASE = 300_000_000, 4_000_000_000
"""Weights below which a base needs large steps, and from which it needs small ones."""
_FEW_ROWS, _SOME_ROWS, _MANY_ROWS = 200, 2_000, 10_000
_FEW_CHARACTERS, _SOME_CHARACTERS, _MANY_CHARACTERS = 50_000, 500_000, 5_000_000
_BATCH_SIZES = ((16, 2), (500, 8), (20_000, 16))
"""Largest number of rows, and the batch size for it."""
_BLOCK_BATCH_SIZES = ((500, 4), (5_000, 8), (20_000, 16))
"""Largest number of blocks of plain text, and the batch size for it."""
_LARGEST_BATCH = 32


def write_base(draft: RecipeDraft, name: str, mode: str, reason: str, mode_reason: str) -> None:
    """Set the base and its precision."""
    draft.set("base", "name", name, reason)
    draft.set("quantization", "mode", mode, mode_reason)


def write_adapter(draft: RecipeDraft, profile: DataProfile) -> None:
    """Set a larger rank for plain text."""
    if profile.is_text:
        draft.set("adapter", "rank", 32, "facts need more room than a style")
        draft.set("adapter", "alpha", 64)


def write_training(draft: RecipeDraft, task: TaskKind, profile: DataProfile, rows: int) -> None:
    """Set epochs and batch size by the amount of data; `rows` are dialogues, or blocks of plain text."""
    epochs, amount = _choose_epochs(task, profile)
    draft.set("training", "epochs", epochs, amount)
    sizes = _BLOCK_BATCH_SIZES if profile.is_text else _BATCH_SIZES
    batch = next((size for largest, size in sizes if rows <= largest), _LARGEST_BATCH)
    steps = max(1, round(rows * epochs / batch))
    unit = "blocks" if profile.is_text else "rows"
    draft.set("training", "effective_batch_size", batch, f"about {steps:,} steps for {rows:,} {unit}")


def _choose_epochs(task: TaskKind, profile: DataProfile) -> tuple[float, str]:
    """Return the epochs and their reason."""
    if profile.is_text:
        size, borders = profile.prompts.total, (_FEW_CHARACTERS, _SOME_CHARACTERS, _MANY_CHARACTERS)
    else:
        size, borders = profile.rows, (_FEW_ROWS, _SOME_ROWS, _MANY_ROWS)
    few, some, many = borders
    if size < few:
        return task.few_epochs, task.epochs_reason
    if size < some:
        return min(3, task.few_epochs), "2 with twice the data, 4 or more with a quarter of it"
    return (2, "1 with five times the data") if size < many else (1, "one pass is enough for this much data")


def write_learning_rate(draft: RecipeDraft, task: TaskKind, weights: int) -> None:
    """Set the learning rate by the size of the base."""
    if weights < _SMALL_BASE:
        draft.set("training", "learning_rate", float(task.small_rate), f"{task.rate_reason}; 2e-4 for a larger base")
    elif weights < _LARGE_BASE:
        draft.set("training", "learning_rate", 2e-4, "lower it if the validation loss rises early")
    else:
        draft.set("training", "learning_rate", 1e-4, "a base of this size needs smaller steps than the default of 2e-4")
