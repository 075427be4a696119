"""Planted cache files are rebuilt or refused; they never cause a traceback or train other rows."""

import json

import numpy as np
import pyarrow as pa
import pytest

from lora_chat.config.audit import AuditSection
from lora_chat.config.data import DataSection
from lora_chat.data.dataset import build_full_set
from lora_chat.data.reading.hub_dataset import _read_note
from lora_chat.data.sources import find_sources, open_sources
from lora_chat.data.storage.store import COLUMNS, LEDGER_FILE, ROWS_FILE, STORED_FILES, UNITS_FILE, DialogueStore
from lora_chat.errors import IntegrityError
from lora_chat.models.bundled import _is_complete
from lora_chat.pipeline.audit_data import audit_sets

TEXTS = ["", "null", "[]", "3", "{}", '{"sizes": []}', '{"sizes": {}, "ledger": {}}', "NaN", "[" * 100_000, "\ud800"]


@pytest.mark.parametrize("text", TEXTS)
def test_invalid_ledger_is_rebuilt(tmp_path, text):
    (tmp_path / LEDGER_FILE).write_bytes(text.encode("utf-8", "surrogatepass"))
    assert not DialogueStore(tmp_path).is_complete


@pytest.mark.parametrize("text", [*TEXTS, '{"config.json": 1}', '{"../../x": 0}', '{"config.json": NaN}'])
def test_invalid_bundled_base_is_rebuilt(tmp_path, text):
    (tmp_path / "complete.json").write_bytes(text.encode("utf-8", "surrogatepass"))
    (tmp_path / "config.json").write_text("{")
    assert not _is_complete(tmp_path)


def _planted(folder, rows, units, batches=None, columns=None):
    for name, table, make in ((ROWS_FILE, rows, pa.ipc.new_stream), (UNITS_FILE, units, pa.ipc.new_file)):
        with make(str(folder / name), table.schema) as file:
            file.write_table(table)
    values = {"digests": [1], "first_rows": [0, 1], "tokens": [1], "through_last_label": [1], "supervised": [1]}
    for name, content in (values | (columns or {})).items():
        (folder / name).write_bytes(np.array(content, COLUMNS[name]).tobytes())
    sizes = {name: (folder / name).stat().st_size for name in STORED_FILES}
    manifest = {"sizes": sizes, "unit_batches": [1] if batches is None else batches, "ledger": {"rows": 1}}
    (folder / LEDGER_FILE).write_text(json.dumps(manifest))
    return DialogueStore(folder)


ROW = {"input_ids": pa.array([[1]]), "labels": pa.array([[True]])}
UNIT = {"path": pa.array(["x"]), "line": pa.array([1]), "dialogue": pa.array(["{}"])}


@pytest.mark.parametrize("rows", [{}, {"input_ids": ROW["input_ids"]}, ROW | {"more": pa.array([1])}, "two"])
def test_rows_of_another_shape_are_refused(tmp_path, rows):
    table = pa.concat_tables([pa.table(ROW)] * 2) if rows == "two" else pa.table(rows)
    with pytest.raises(IntegrityError, match="damaged"):
        _planted(tmp_path, table, pa.table(UNIT)).open_rows()


@pytest.mark.parametrize("units", [{}, {"path": UNIT["path"]}])
def test_units_of_another_shape_are_refused(tmp_path, units):
    with pytest.raises(IntegrityError, match="damaged"):
        list(_planted(tmp_path, pa.table(ROW), pa.table(units)).read_units(np.array([0])))


@pytest.mark.parametrize("batches", [[], [2], [-1], ["1"], [1, 1], "1", [10**30], [True]])
def test_batches_of_other_sizes_are_refused(tmp_path, batches):
    with pytest.raises(IntegrityError, match="damaged"):
        list(_planted(tmp_path, pa.table(ROW), pa.table(UNIT), batches).read_units(np.array([0])))


@pytest.mark.parametrize(
    "columns",
    [{"digests": [1, 2]}, {"first_rows": []}, {"first_rows": [0, 2]}, {"first_rows": [-1, 1]}, {"tokens": []}],
)
def test_columns_of_other_lengths_are_refused(tmp_path, columns):
    with pytest.raises(IntegrityError, match="damaged"):
        build_full_set([_planted(tmp_path, pa.table(ROW), pa.table(UNIT), columns=columns)]).rows.lengths.sum()
        _ = DialogueStore(tmp_path).digests


def test_refuses_invalid_table(tmp_path):
    _planted(tmp_path, pa.table(ROW), pa.table(UNIT))
    for raw in (b"", b"\xff" * 64, b"\xff\xff\xff\xff\xff\xff\xff\x7f" + b"\0" * 64):
        (tmp_path / ROWS_FILE).write_bytes(raw)
        (tmp_path / UNITS_FILE).write_bytes(raw)
        with pytest.raises(IntegrityError, match="damaged"):
            DialogueStore(tmp_path).open_rows()
        with pytest.raises(IntegrityError, match="damaged"):
            list(DialogueStore(tmp_path).read_units(np.array([0])))


NOTE = {"dialogues": 1, "counts": {"secret": 1}, "findings": [], "shares": {}, "refused": [], "redacted": []}


@pytest.mark.parametrize(
    "text",
    [
        *TEXTS,
        json.dumps(NOTE),
        json.dumps(NOTE | {"counts": {"secret": 0}, "findings": [{"kind": "secret", "path": "x", "line": 1}]}),
        json.dumps(NOTE | {"counts": {"secret": "many"}}),
        json.dumps(NOTE | {"counts": {}, "shares": []}),
        json.dumps(NOTE | {"counts": {"x": 0}}),
        json.dumps(NOTE | {"counts": {}, "refused": ["x"]}),
    ],
)
def test_damaged_audit_is_repeated(cache_home, tiny_tokenizer, tmp_path, text):
    row = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "Mail bob@corp-mail.com"}]}
    (tmp_path / "d.jsonl").write_text(json.dumps(row) + "\n")
    section = DataSection(train=str(tmp_path / "d.jsonl"), workers=1)
    (opened,) = open_sources(
        find_sources(section.train_sources), section, tiny_tokenizer, [tiny_tokenizer.eos_token_id], None
    )
    parts = build_full_set([opened.store]), build_full_set([opened.store]), tiny_tokenizer, AuditSection()
    right = audit_sets(*parts)
    assert right.counts["personal_data"] == 2
    notes = list((cache_home / "lora-chat" / "audits").glob("*.json"))
    assert audit_sets(*parts) == right  # from its note
    for note in notes:
        note.write_bytes(text.encode("utf-8", "surrogatepass"))
    assert audit_sets(*parts) == right


@pytest.mark.parametrize("text", [*TEXTS, '{"commit": "%s", "files": {}}' % ("a" * 40), '{"commit": "x", "files": []}'])
def test_damaged_cached_commit_is_ignored(tmp_path, text):
    (tmp_path / "note.json").write_bytes(text.encode("utf-8", "surrogatepass"))
    assert _read_note("a/b", tmp_path / "note.json") is None
