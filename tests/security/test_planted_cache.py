"""What others planted in a cache is made again or named; it never ends in a traceback or trains other rows."""

import json

import pyarrow as pa
import pytest

from lora_chat.dialogues.store import LEDGER, ROWS, UNITS, Store
from lora_chat.errors import IntegrityError
from lora_chat.models.embedded import _is_whole

TEXTS = ["", "null", "[]", "3", "{}", '{"sizes": []}', '{"sizes": {}, "ledger": {}}', "NaN", "[" * 100_000, "\ud800"]


@pytest.mark.parametrize("text", TEXTS)
def test_a_ledger_that_is_none_is_made_again(tmp_path, text):
    (tmp_path / LEDGER).write_bytes(text.encode("utf-8", "surrogatepass"))
    assert not Store(tmp_path).is_whole


@pytest.mark.parametrize("text", [*TEXTS, '{"config.json": 1}', '{"../../x": 0}', '{"config.json": NaN}'])
def test_a_base_that_is_none_is_made_again(tmp_path, text):
    (tmp_path / "complete.json").write_bytes(text.encode("utf-8", "surrogatepass"))
    (tmp_path / "config.json").write_text("{")
    assert not _is_whole(tmp_path)


def _planted(folder, rows, units):
    for name, table in ((ROWS, rows), (UNITS, units)):
        with pa.ipc.new_stream(str(folder / name), table.schema) as file:
            file.write_table(table)
    sizes = {name: (folder / name).stat().st_size for name in (ROWS, UNITS)}
    (folder / LEDGER).write_text(json.dumps({"sizes": sizes, "ledger": {"rows": 1}}))
    return Store(folder)


ROW = {"input_ids": pa.array([[1]]), "labels": pa.array([[True]]), "unit": pa.array([0])}
UNIT = {"digest": pa.array([1]), "path": pa.array(["x"]), "line": pa.array([1]), "dialogue": pa.array(["{"])}


@pytest.mark.parametrize("rows", [{}, {"input_ids": ROW["input_ids"]}, ROW | {"more": pa.array([1])}, "two"])
def test_rows_of_another_shape_are_refused(tmp_path, rows):
    table = pa.concat_tables([pa.table(ROW)] * 2) if rows == "two" else pa.table(rows)
    with pytest.raises(IntegrityError, match="damaged"):
        _planted(tmp_path, table, pa.table(UNIT)).open_rows()


@pytest.mark.parametrize("units", [{}, {"path": UNIT["path"]}])
def test_units_of_another_shape_are_refused(tmp_path, units):
    with pytest.raises(IntegrityError, match="damaged"):
        _ = _planted(tmp_path, pa.table(ROW), pa.table(units)).digests


def test_bytes_that_are_no_table_are_refused(tmp_path):
    _planted(tmp_path, pa.table(ROW), pa.table(UNIT))
    for raw in (b"", b"\xff" * 64, b"\xff\xff\xff\xff\xff\xff\xff\x7f" + b"\0" * 64):
        (tmp_path / ROWS).write_bytes(raw)
        (tmp_path / UNITS).write_bytes(raw)
        with pytest.raises(IntegrityError, match="damaged"):
            Store(tmp_path).open_rows()
        with pytest.raises(IntegrityError, match="damaged"):
            _ = Store(tmp_path).digests
