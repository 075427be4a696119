"""An out-of-memory error in any part of a training gives one clean message, even if the clean-up fails too."""

import pytest
import torch

from lora_chat.config.plan import PrecisionPlan, make_plan
from lora_chat.config.recipe import AdapterSection, BaseSection, DataSection, Recipe, TrainingSection
from lora_chat.data.encoding.encode import EncodedDialogue
from lora_chat.errors import OutOfMemoryError
from lora_chat.models.adapter import attach_adapter
from lora_chat.models.base_model import find_base, load_base_model, load_tokenizer
from lora_chat.system.hardware import Hardware
from lora_chat.training import adapter_dtype, sft
from lora_chat.training.callbacks.memory_check import MemoryCheckCallback
from lora_chat.training.fast_path import select
from lora_chat.training.trainer import PackedSFTTrainer
from lora_chat.training.training_run import TrainingRun

BF16 = PrecisionPlan(device="cpu", mode="none", double_quantization=True, dtype="bfloat16")
ROWS = [EncodedDialogue(list(range(5, 5 + n)), [-100] * 4 + list(range(9, 5 + n))) for n in (10, 14, 12, 16)]


def run_out_of_memory(*args, **kwargs):
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


@pytest.mark.parametrize("cleanup_fails", [False, True])
@pytest.mark.parametrize(
    ("owner", "name"),
    [
        (select, "find_packed_collator"),
        (MemoryCheckCallback, "_largest_micro_batches"),
        (PackedSFTTrainer, "training_step"),
        (PackedSFTTrainer, "score_rows"),
    ],
    ids=["check of the fast path", "dry run", "step", "evaluation"],
)
def test_message_survives(cache_home, tmp_path, monkeypatch, owner, name, cleanup_fails):
    cast = adapter_dtype.cast_adapter

    def cast_with_little_memory(model, dtype):
        if dtype == torch.bfloat16 and cleanup_fails:
            run_out_of_memory()
        cast(model, dtype)

    monkeypatch.setattr(owner, name, run_out_of_memory)
    monkeypatch.setattr(adapter_dtype, "cast_adapter", cast_with_little_memory)
    base = find_base(BaseSection(name="tiny-random"))
    model = attach_adapter(load_base_model(base, BF16), AdapterSection(rank=4), seed=3)
    attention = model.config._attn_implementation
    recipe = Recipe(data=DataSection(train="x"), training=TrainingSection(epochs=1, effective_batch_size=2))
    plan = make_plan(recipe, Hardware("cpu", "test", 0, True, 1)).training
    run = TrainingRun(
        model,
        load_tokenizer(base),
        ROWS,
        ROWS[:1],
        plan,
        tmp_path / "metrics.jsonl",
        bfloat16=True,
        evaluate_each_epoch=True,
    )
    with pytest.raises(OutOfMemoryError, match=r"Out of memory.*\n?.*Fix:"):
        sft.train_sft(run)
    assert model.config._attn_implementation == attention
