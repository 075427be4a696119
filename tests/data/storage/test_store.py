import json
import os

import pyarrow
import pytest

from lora_chat.data.encoding.encode import encode_dialogue
from lora_chat.data.parsing.messages import parse_dialogue
from lora_chat.data.parsing.rows import ReadingOptions
from lora_chat.data.storage import build as build_module
from lora_chat.data.storage import cache
from lora_chat.data.storage.build import build_store
from lora_chat.data.storage.encode_chunk import ChunkEncoder, EncodingOptions
from lora_chat.data.storage.store import LEDGER_FILE, ROWS_FILE, STORED_FILES, UNITS_FILE, DialogueStore
from lora_chat.errors import IntegrityError, OutOfMemoryError


def row(i):
    messages = [{"role": "user", "content": f"question {i}"}, {"role": "assistant", "content": f"你好 {i}"}]
    if i % 3 == 0:
        messages += [{"role": "user", "content": "and?"}, {"role": "assistant", "content": "🙂", "train": False}]
    return {"messages": messages}


@pytest.fixture
def file(tmp_path, monkeypatch):
    monkeypatch.setattr("lora_chat.data.parsing.rows._CHUNK_ROWS", 10)  # many chunks
    path = tmp_path / "chats.jsonl"
    path.write_text("".join(json.dumps(row(i)) + "\n" for i in range(120)))
    return path


def options(limit=200, **reading):
    return EncodingOptions(ReadingOptions(**reading), limit, "drop")


def build(folder, path, tokenizer, workers=1, **reading):
    folder.mkdir()
    build_store(folder, [path], ChunkEncoder(tokenizer, [tokenizer.eos_token_id], options(**reading)), workers)
    return DialogueStore(folder)


def test_reads_back_the_written_store(tmp_path, file, tiny_tokenizer):
    import numpy as np

    store = build(tmp_path / "store", file, tiny_tokenizer)
    table = store.open_rows()
    assert len(table) == len(store.digests) == store.ledger.rows == store.ledger.dialogues == 120
    wanted = np.array([0, 3, 4, 70, 119])
    found = list(store.read_units(wanted))
    assert [number for number, *_ in found] == wanted.tolist()
    for number, path, line, said in found:
        dialogue = parse_dialogue(row(number))
        assert (path, line) == (str(file), number + 1)
        assert parse_dialogue(said) == dialogue
        assert store.digests[number] == dialogue.digest
        (encoded,) = encode_dialogue(dialogue, tiny_tokenizer, [tiny_tokenizer.eos_token_id])
        assert store.first_rows[number : number + 2].tolist() == [number, number + 1]
        assert store.row_lengths.tokens[number] == len(encoded.input_ids)
        assert store.row_lengths.supervised[number] == encoded.supervised_tokens
        assert table[number]["input_ids"] == encoded.input_ids
        assert table[number]["labels"] == [label >= 0 for label in encoded.labels]
    assert list(store.read_units(np.array([], int))) == []
    assert store.ledger.tokens == sum(map(len, table["input_ids"]))
    assert store.ledger.supervised_tokens == sum(map(sum, table["labels"]))


@pytest.mark.parametrize("data_format", ["messages", "text"])
def test_any_number_of_processes_writes_the_same_bytes(tmp_path, file, tiny_tokenizer, data_format):
    if data_format == "text":
        file.write_text("".join(json.dumps({"text": f"Once upon a time {i} 你好"}) + "\n" for i in range(120)))
    alone, several = (build(tmp_path / str(n), file, tiny_tokenizer, n, data_format=data_format) for n in (1, 3))
    for name in (*STORED_FILES, LEDGER_FILE):
        assert (alone.folder / name).read_bytes() == (several.folder / name).read_bytes()
    assert alone.ledger == several.ledger


def open_store(path, tokenizer, **changes):
    changes = {"workers": 1} | changes
    return cache.open_store([path], tokenizer, [tokenizer.eos_token_id], changes.pop("options", options()), **changes)


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    return tmp_path / "home" / "lora-chat" / "dialogues"


def test_a_store_is_built_once_for_the_same_bytes_and_settings(home, file, tiny_tokenizer, monkeypatch):
    first = open_store(file, tiny_tokenizer)
    monkeypatch.setattr(cache, "build_store", None)
    assert open_store(file, tiny_tokenizer).folder == first.folder


def test_other_bytes_or_settings_build_another_store(home, file, tiny_tokenizer):
    folders = {open_store(file, tiny_tokenizer).folder}
    for other in (options(limit=100), options(last_turn_only=True), EncodingOptions(ReadingOptions(), 200, "cut")):
        folders.add(open_store(file, tiny_tokenizer, options=other).folder)
    file.write_text(file.read_text() + json.dumps(row(120)) + "\n")
    changed = open_store(file, tiny_tokenizer)
    assert changed.ledger.lines == 121
    assert len(folders | {changed.folder}) == 5
    assert all(folder.stat().st_mode & 0o077 == 0 for folder in folders)


@pytest.mark.parametrize("name", [ROWS_FILE, UNITS_FILE, LEDGER_FILE, "tokens"])
@pytest.mark.parametrize("damage", ["gone", "empty", "shorter", "half"])
def test_rebuilds_an_incomplete_store(home, file, tiny_tokenizer, name, damage):
    whole = open_store(file, tiny_tokenizer)
    before = {each: (whole.folder / each).read_bytes() for each in (*STORED_FILES, LEDGER_FILE)}
    path, content = whole.folder / name, before[name]
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes({"empty": b"", "shorter": content[:-8], "half": content[: len(content) // 2]}[damage])
    again = open_store(file, tiny_tokenizer)
    assert {each: (again.folder / each).read_bytes() for each in before} == before
    assert again.ledger.rows == len(again.open_rows()) == 120


@pytest.mark.parametrize("name", [ROWS_FILE, UNITS_FILE])
def test_reports_damaged_stores_as_damaged(tmp_path, file, tiny_tokenizer, name):
    import numpy as np

    store = build(tmp_path / "store", file, tiny_tokenizer)
    content = (store.folder / name).read_bytes()  # a stream has its schema at the beginning, a file at its end
    damaged = os.urandom(64) + content[64:] if name == ROWS_FILE else content[:-64] + os.urandom(64)
    (store.folder / name).write_bytes(damaged)
    with pytest.raises(IntegrityError, match="delete it"):
        store.open_rows() if name == ROWS_FILE else list(store.read_units(np.array([0])))
    (store.folder / name).unlink()
    with pytest.raises(IntegrityError, match="delete it"):
        store.open_rows() if name == ROWS_FILE else list(store.read_units(np.array([0])))


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("error", [KeyboardInterrupt, ZeroDivisionError])
def test_interrupted_build_leaves_no_store(home, file, tiny_tokenizer, monkeypatch, workers, error):
    class Breaking(ChunkEncoder):
        def __call__(self, chunk):
            if chunk.rows[0].line > 60:
                raise error
            return super().__call__(chunk)

    monkeypatch.setattr(cache, "ChunkEncoder", Breaking)
    with pytest.raises(error):
        open_store(file, tiny_tokenizer, workers=workers)
    assert list(home.iterdir()) == []
    monkeypatch.setattr(cache, "ChunkEncoder", ChunkEncoder)
    assert open_store(file, tiny_tokenizer).ledger.rows == 120


def test_reports_a_killed_worker_process(home, file, tiny_tokenizer, monkeypatch):
    class Ended(ChunkEncoder):
        def __call__(self, chunk):
            os._exit(9)

    monkeypatch.setattr(cache, "ChunkEncoder", Ended)
    with pytest.raises(OutOfMemoryError, match=r"data\.workers=1"):
        open_store(file, tiny_tokenizer, workers=3)
    assert list(home.iterdir()) == []


def test_progress_callback_can_stop_the_build(home, file, tiny_tokenizer):
    def seen(ledger):
        if ledger.lines > 50:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        open_store(file, tiny_tokenizer, workers=3, on_progress=seen)
    assert list(home.iterdir()) == []


def test_deletes_the_least_recently_used_stores(home, file, tiny_tokenizer, monkeypatch):
    old = open_store(file, tiny_tokenizer)
    os.utime(old.folder, (1, 1))
    monkeypatch.setattr(cache, "_MAX_CACHE_BYTES", 10)
    new = open_store(file, tiny_tokenizer, options=options(limit=100))
    assert list(home.iterdir()) == [new.folder]


def test_memory_does_not_grow_while_reading(tmp_path, file, tiny_tokenizer):
    store = build(tmp_path / "store", file, tiny_tokenizer)
    held = pyarrow.total_allocated_bytes()
    table = store.open_rows()
    assert sum(len(table[i]["input_ids"]) for i in range(0, len(table), 10)) > 0
    assert pyarrow.total_allocated_bytes() - held < 1 << 20


def test_encodes_few_chunks_in_this_process(tmp_path, tiny_tokenizer, monkeypatch):
    monkeypatch.setattr(build_module, "ProcessPoolExecutor", None)
    path = tmp_path / "few"
    path.write_text("".join(json.dumps(row(i)) + "\n" for i in range(10)))
    assert build(tmp_path / "store", path, tiny_tokenizer, 8).ledger.rows == 10
