"""The fast path of several processes has only the parts that pass their checks in all of them."""

import pytest

from lora_chat.processes.group import ProcessGroup
from lora_chat.processes.rank import Rank
from lora_chat.training.fast_path.agreed_parts import agree_on_parts
from lora_chat.training.fast_path.packed_batch import PackedBatchCollator
from lora_chat.training.fast_path.select import FastPath
from lora_chat.training.stock_path import StockPath

HEAD = object()
FULL = FastPath(PackedBatchCollator(share_prefix=True), HEAD, True)
WITHOUT_PREFIX = FastPath(PackedBatchCollator(share_prefix=False), HEAD, True)
PACKED = FastPath(PackedBatchCollator(share_prefix=True), notes=("Fused layers are off.",))
STOCK = FastPath(notes=("It does not run (out of memory).",))


class Recorder(ProcessGroup):
    """A group whose other process has given its values before."""

    rank = Rank(0, 2, 0, 2)

    def __init__(self, *others):
        self.others = list(others)
        self.given = []

    def gather_json(self, value):
        self.given.append(value)
        return [value, self.others.pop(0)]

    exchange = gather_json


def agree(own, other):
    recorder = Recorder([True] * 4, [])
    agree_on_parts(other, recorder)
    return agree_on_parts(own, Recorder(*recorder.given))


@pytest.mark.parametrize(
    ("own", "other", "common"),
    [
        (FULL, FULL, FULL),
        (FULL, PACKED, FastPath(PACKED.packed_collator, notes=("Process 2 of 2: Fused layers are off.",))),
        (FULL, STOCK, FastPath(notes=("Process 2 of 2: It does not run (out of memory).",))),
        (STOCK, FULL, FastPath(notes=("Process 1 of 2: It does not run (out of memory).",))),
        (STOCK, STOCK, STOCK),
        (FULL, WITHOUT_PREFIX, WITHOUT_PREFIX),
    ],
)
def test_a_part_that_fails_in_one_process_is_off_in_all(own, other, common):
    assert agree(own, other) == common


def test_one_process_keeps_its_fast_path():
    assert agree_on_parts(FULL, ProcessGroup()) is FULL


def test_stock_path_is_the_one_that_any_process_needs():
    group = Recorder([0.0, 1.0])
    assert StockPath(uses_own_logits=True).agree(group) == StockPath(uses_own_logits=True, splits_rows=True)
    assert StockPath().agree(ProcessGroup()) == StockPath()
