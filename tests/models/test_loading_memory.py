"""A base that does not fit gives the message about memory, also if Transformers hides the reason."""

import pytest
import torch
from transformers import AutoModelForCausalLM

import lora_chat.models.base_model as base_model
from lora_chat.config.plan import PrecisionPlan
from lora_chat.config.recipe import BaseSection
from lora_chat.errors import OutOfMemoryError, UnavailableError

PRECISION = PrecisionPlan(device="cpu", mode="none", double_quantization=True, dtype="float32")
CONVERSION_ERROR = RuntimeError("We encountered some issues during automatic conversion of the weights.")


def load(monkeypatch, error, counts):
    def fail(*arguments, **options):
        raise error

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", fail)
    monkeypatch.setattr(base_model, "count_gpu_memory_errors", iter(counts).__next__)
    base_model.load_base_model(base_model.find_base(BaseSection(name="tiny-random")), PRECISION)


@pytest.mark.parametrize(
    ("error", "counts"),
    [(torch.OutOfMemoryError("CUDA out of memory."), [0, 1]), (CONVERSION_ERROR, [2, 3])],
    ids=["reported", "hidden"],
)
def test_too_large_base_is_out_of_memory(cache_home, monkeypatch, error, counts):
    with pytest.raises(OutOfMemoryError, match=r"does not fit into memory in mode none\.\nFix: --set"):
        load(monkeypatch, error, counts)


def test_other_conversion_error_is_unreadable_weights(cache_home, monkeypatch):
    with pytest.raises(UnavailableError, match="cannot be loaded"):
        load(monkeypatch, CONVERSION_ERROR, [2, 2])
