"""Structs, maps and floats of Arrow are read as the JSON that they came from."""

import json

import pyarrow as pa
import pytest
from pyarrow import parquet

from lora_chat.data.parsing.rows import read_dialogues
from lora_chat.data.reading.arrow_values import WholeFloat, convert_batch


def rows_of(table):
    return [row for batch in table.to_batches() for row in convert_batch(batch)]


@pytest.mark.parametrize(
    "rows",
    [
        [{"a": {"x": 1}}, {"a": {"y": {"z": 1}}}, {"a": {"y": {}}}],
        [{"a": [{"x": 1}, {"y": [{"p": 1}, {"q": [1, None]}]}]}, {"a": []}],
        [{"a": None}, {"a": {"x": 0, "t": ""}}, {"a": {"y": False, "l": []}}],
    ],
)
def test_drops_keys_that_only_other_rows_have(rows):
    assert rows_of(pa.Table.from_pylist(rows)) == rows


def test_a_null_in_a_struct_is_a_missing_key_and_in_a_list_or_map_a_null():
    table = pa.table(
        {
            "m": pa.array([[("a", None), ("b", 1)]], pa.map_(pa.string(), pa.int64())),
            "twice": pa.array([[("a", 1), ("a", 2)]], pa.map_(pa.string(), pa.int64())),
            "s": pa.array([{"x": None}]),
        }
    )
    assert rows_of(table) == [{"m": {"a": None, "b": 1}, "twice": [("a", 1), ("a", 2)], "s": {}}]


def test_whole_numbers_of_a_float_column_without_fractions_are_marked():
    (whole, _), (mixed, _) = (
        [row["a"] for row in rows_of(pa.table({"a": pa.array(values, pa.float64())}))]
        for values in ([1.0, None], [1.0, 0.5])
    )
    assert (type(whole), type(mixed), whole, mixed) == (WholeFloat, float, 1.0, 1.0)


def test_narrow_floats_keep_their_digits():
    assert rows_of(pa.table({"a": pa.array([0.1, 2.5], pa.float32())})) == [{"a": 0.1}, {"a": 2.5}]


def test_calls_and_tools_of_parquet_equal_their_json(tmp_path):
    tools = [
        {"type": "function", "function": {"name": "move", "parameters": {"properties": {"x": {"type": "integer"}}}}},
        {"type": "function", "function": {"name": "turn", "parameters": {"properties": {"angle": {"enum": ["left"]}}}}},
    ]
    rows = [
        {
            "messages": [
                {"role": "user", "content": "go"},
                {"role": "assistant", "tool_calls": [{"type": "function", "function": {"name": n, "arguments": a}}]},
                {"role": "tool", "content": "done"},
                {"role": "assistant", "content": "Done."},
            ],
            "tools": tools,
        }
        for n, a in (("move", {"x": 1}), ("turn", {"angle": {"side": "left"}}), ("stop", {}))
    ]
    parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "rows.parquet")
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    from_parquet, from_json = (
        [replace_place(d) for d in read_dialogues(tmp_path / f"rows.{kind}")[0]] for kind in ("parquet", "jsonl")
    )
    assert from_parquet == from_json


def replace_place(dialogue):
    return dialogue.as_dicts, dialogue.tool_list
