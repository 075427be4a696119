"""Lengths read from columns equal the lengths of rows read one by one."""

from dataclasses import replace

import numpy as np
from datasets import Dataset, concatenate_datasets
from hypothesis import given, settings
from hypothesis import strategies as st

from lora_chat.data.dataset import EncodedRows
from lora_chat.data.lengths import DataLengths, RowLengths, measure_rows
from lora_chat.training.fast_path.packed_batch import PackedBatchCollator

MASKS = st.lists(st.lists(st.booleans(), min_size=1, max_size=12), min_size=1, max_size=8)


@settings(deadline=None, max_examples=150, derandomize=True)
@given(parts=st.lists(MASKS, min_size=1, max_size=3), data=st.data())
def test_lengths_of_columns_equal_lengths_of_rows(parts, data):
    tables = [Dataset.from_dict({"input_ids": [[7] * len(m) for m in masks], "labels": masks}) for masks in parts]
    table = concatenate_datasets(tables)
    if data.draw(st.booleans()):
        table = table.select(data.draw(st.lists(st.integers(0, len(table) - 1), min_size=1, max_size=10)))
    elif data.draw(st.booleans()):
        begin = data.draw(st.integers(0, len(table) - 1))
        table = table.select(range(begin, len(table)))  # a slice of the same columns
    rows = EncodedRows(table)
    found = measure_rows(rows)
    assert found.tokens.tolist() == [len(row.input_ids) for row in rows]
    assert found.supervised.tolist() == [row.supervised_tokens for row in rows]
    kept = [PackedBatchCollator.trim({"input_ids": row.input_ids, "labels": row.labels})["input_ids"] for row in rows]
    assert found.through_last_label.tolist() == [len(ids) for ids in kept]


def test_the_rows_that_are_read_after_training_include_the_recited_replies():
    train, validation = (RowLengths(*[np.array(tokens)] * 3) for tokens in ([10, 21, 33], [7]))
    lengths = DataLengths(train, validation, (), 5)
    assert lengths.evaluated_tokens.tolist() == [7]
    assert replace(lengths, recital_replies=2).evaluated_tokens.tolist() == [7, 22, 22]
    assert replace(lengths, recital_replies=9).evaluated_tokens.tolist() == [7, 22, 22, 22]
