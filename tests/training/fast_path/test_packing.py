"""Tests of the distribution of a step's dialogues over micro-batches."""

from hypothesis import given, settings
from hypothesis import strategies as st

from lora_chat.training.fast_path.packed_batch import PackedBatchCollator
from lora_chat.training.fast_path.packing import pack_rows
from lora_chat.training.step_collator import PackedStepCollator


@given(
    lengths=st.lists(st.integers(1, 900), min_size=1, max_size=40),
    max_tokens=st.integers(1, 2000),
    max_rows=st.integers(1, 40),
)
@settings(max_examples=300, deadline=None)
def test_every_row_is_packed_once_within_the_budget(lengths, max_tokens, max_rows):
    batches = pack_rows(lengths, max_tokens, max_rows)
    assert sorted(i for batch in batches for i in batch) == list(range(len(lengths)))
    for batch in batches:
        assert len(batch) == 1 or sum(lengths[i] for i in batch) <= max_tokens
        assert len(batch) <= max_rows


def test_micro_batches_have_similar_sizes():
    batches = pack_rows([100, 900, 100, 900, 100, 900, 100, 900], 2048, 8)
    assert [sum([100, 900, 100, 900, 100, 900, 100, 900][i] for i in batch) for batch in batches] == [2000, 2000]


def row(*ids):
    return {"input_ids": [1, 2, 3, 4, 5, *ids], "labels": [-100] * 5 + list(ids)}


def test_counts_shared_prefix_once_per_micro_batch():
    rows = [row(7, 8, 9), row(8, 9), row(9, 7, 7), row(6, 6)]
    step_batch = PackedStepCollator(PackedBatchCollator(share_prefix=True), max_tokens=18, max_rows=None)(rows)
    (batch,) = step_batch["micro_batches"]
    assert batch["shared_prefix"] == 4
    assert batch["input_ids"].shape == (1, 18)
