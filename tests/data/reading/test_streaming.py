"""Streamed data sets of the hub: the same rows and counts as a download, few bytes, and continuation after a break."""

import gzip
import hashlib
import io
import json
import random
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote

import pyarrow as pa
import pytest
from pyarrow import parquet

from lora_chat.config.data import DataSection
from lora_chat.data.dataset import build_full_set
from lora_chat.data.reading import streamed_file
from lora_chat.data.sources import find_sources, open_sources
from lora_chat.data.storage import parts
from lora_chat.errors import DataError, IntegrityError, UnavailableError
from lora_chat.pipeline.row_digest import digest_rows
from lora_chat.system import hub_ranges
from lora_chat.system.hub_answers import HubResponseError

COMMIT = "3" * 40
ROWS = [
    {"messages": [{"role": "user", "content": f"question {n}"}, {"role": "assistant", "content": "yes " * (n % 9 + 1)}]}
    for n in range(110)
]
LINES = [json.dumps(row) for row in ROWS]
FAULTY = [*LINES[:40], "", "  ", "", "{broken", *LINES[40:], "{}", ""]


def to_parquet(rows):
    """Return rows with a long column that is not used, because Arrow reads the last 64 kB of a file together."""
    file = io.BytesIO()
    rows = [row | {"note": random.Random(number).randbytes(1000).hex()} for number, row in enumerate(rows)]
    parquet.write_table(pa.Table.from_pylist(rows), file, row_group_size=11, compression="none", use_dictionary=False)
    return file.getvalue()


def to_csv(rows):
    lines = [f'{row["messages"][0]["content"]},"{row["messages"][1]["content"]}"' for row in rows]
    return "\n".join(["user,assistant", *lines]).encode()


FILES = {
    "jsonl": ("train.jsonl", "\n".join(FAULTY).encode()),
    "parquet": ("train.parquet", to_parquet(ROWS)),
    "csv": ("train.csv.gz", gzip.compress(to_csv(ROWS))),
    "text": ("train.txt", "\n\n".join(f"Once upon a time {n}." for n in range(400)).encode()),
}


class Hub:
    """One commit of a data set. Parts of files are sent, unless `down`; `cut_after` bytes a connection ends."""

    def __init__(self):
        self.files, self.lie, self.headers = {}, {}, {}
        self.down, self.cut_after, self.left, self.sends_whole = False, None, None, False
        self.ranges, self.sent = [], 0

    def find(self, path):
        parts = [unquote(part) for part in path.strip("/").split("/")]
        if parts[:2] == ["api", "datasets"]:
            if "tree" not in parts:
                return json.dumps({"id": "friend/talk", "sha": COMMIT}).encode()
            tree = []
            for name, content in self.files.items():
                lfs = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 130}
                tree.append({"type": "file", "path": name, "size": len(content), "oid": "0" * 40, "lfs": lfs})
            return json.dumps(tree).encode()
        assert parts[4] == COMMIT
        return self.lie.get(parts[-1], self.files[parts[-1]])


class Handler(BaseHTTPRequestHandler):
    hub: Hub

    def do_HEAD(self):
        self.do_GET()

    def log_message(self, *args):
        pass

    def do_GET(self):
        hub, is_file = self.hub, "/resolve/" in self.path
        if hub.down or (is_file and hub.left is not None and hub.left <= 0):
            self.close_connection = True
            return
        content = hub.find(self.path.partition("?")[0])
        match = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        headers = {}
        if is_file:
            headers = {"ETag": f'"{hashlib.sha1(self.path.encode()).hexdigest()}"', "X-Repo-Commit": COMMIT}
        status, body = 200, content
        if match and not hub.sends_whole:
            first, last = int(match[1]), min(int(match[2]), len(content) - 1)
            status, body = 206, content[first : last + 1]
            headers["Content-Range"] = f"bytes {first}-{last}/{len(content)}"
        if match:
            hub.ranges.append((int(match[1]), int(match[2])))
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body)), **(hub.headers if is_file else {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        if is_file and hub.cut_after is not None:
            body = body[: hub.cut_after]
            self.close_connection = True
        if is_file and hub.left is not None:
            hub.left -= len(body)
        hub.sent += len(body) if is_file else 0
        self.wfile.write(body)


@pytest.fixture(scope="module")
def server():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield server
    server.shutdown()


@pytest.fixture
def hub(server, tmp_path, monkeypatch):
    import huggingface_hub
    from huggingface_hub import constants

    endpoint = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setenv("HF_HUB_DISABLE_IMPLICIT_TOKEN", "1")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", endpoint + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(hub_ranges, "_FIRST_WAIT_SECONDS", 0.0)
    monkeypatch.setattr(streamed_file, "_FIRST_BLOCK_BYTES", 512)
    monkeypatch.setattr(streamed_file, "_MAX_BLOCK_BYTES", 4096)
    monkeypatch.setattr(streamed_file, "_BUFFER_BYTES", 256)
    monkeypatch.setattr("lora_chat.data.reading.file_types._HEAD_BYTES", 1024)
    monkeypatch.setattr(parts, "_PART_LINES", 60)
    monkeypatch.setattr("lora_chat.data.parsing.rows._CHUNK_ROWS", 10)
    monkeypatch.setattr("lora_chat.data.reading.files._TEXT_PIECE_BYTES", 1000)
    monkeypatch.setattr("lora_chat.data.reading.arrow_files._BATCH_ROWS", 7)
    huggingface_hub.close_session()
    Handler.hub = Hub()
    yield Handler.hub
    huggingface_hub.close_session()


@pytest.fixture
def load(hub, tiny_tokenizer):
    def load_source(kind, *, streaming=True, **settings):
        name, content = FILES[kind]
        hub.files = {name: content}
        settings = {"skip_bad": 5, "max_length": 64, "over_long": "drop"} | settings
        if kind == "csv":
            settings["columns"] = {"user": "user", "assistant": "assistant"}
        if kind == "text":
            settings["format"] = "text"
        data = DataSection(train={"hub": "friend/talk"}, streaming=streaming, workers=1, **settings)
        sources = find_sources(data.train_sources, streaming=data.streaming)
        return open_sources(sources, data, tiny_tokenizer, [tiny_tokenizer.eos_token_id], None)[0].store

    return load_source


def read_store(store):
    """Return everything in a store that does not name files."""
    ledger = store.ledger.as_dict()
    refusals = [re.sub(r"^\S+:(\d+)", r"\1", refusal) for refusal in ledger.pop("refusals")]
    over_long = [line.rpartition("/")[2] for line in ledger.pop("over_long")]
    formats = list(ledger.pop("files").values())
    units = [(line, said) for _, _, line, said in store.read_units(build_full_set([store]).units_by_store[0][1])]
    rows = store.open_rows()[:]
    return ledger, refusals, over_long, formats, units, rows, digest_rows(build_full_set([store]))


DOWNLOADED = {}


def downloaded(load, kind, limit=None):
    """Return the content of the store that a download gives, which is made once."""
    if (kind, limit) not in DOWNLOADED:
        DOWNLOADED[kind, limit] = read_store(load(kind, streaming=False, limit=limit))
    return DOWNLOADED[kind, limit]


@pytest.mark.parametrize(
    ("kind", "limit"), [("jsonl", None), ("jsonl", 100), ("parquet", None), ("csv", None), ("text", None)]
)
def test_streamed_rows_and_counts_equal_the_download(load, kind, limit):
    streamed = read_store(load(kind, limit=limit))
    assert streamed == downloaded(load, kind, limit)
    assert streamed[0]["dialogues"]


def test_streaming_stores_no_file_and_stops_at_the_limit(load, hub, tmp_path):
    load("jsonl", limit=5)
    assert hub.sent < len(FILES["jsonl"][1]) / 4
    assert not [path for path in (tmp_path / "hub").rglob("*") if path.is_file()]
    assert not list((tmp_path / "cache" / "lora-chat" / "dialogues").glob(".*"))


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_broken_connections_continue_at_the_byte_where_they_stopped(load, hub, kind):
    size = len(FILES[kind][1])
    hub.cut_after = size // 30
    broken = read_store(load(kind))
    assert len(hub.ranges) > 30
    assert hub.sent < 1.3 * size
    hub.cut_after = None
    assert broken == downloaded(load, kind)


@pytest.mark.parametrize(("kind", "limit", "share"), [("jsonl", 100, 0.5), ("parquet", None, 0.6), ("text", 1, 0.5)])
def test_second_start_continues_after_the_rows_that_are_encoded(load, hub, kind, limit, share, tmp_path):
    size = len(FILES[kind][1])
    hub.left = int(size * share)
    with pytest.raises(UnavailableError, match=r"friend/talk@333333333333/train\.\w+, byte [\d,]+\)"):
        load(kind, limit=limit)
    (folder,) = (tmp_path / "cache" / "lora-chat" / "dialogues").iterdir()
    assert folder.name.endswith("-parts")
    hub.left, hub.ranges, hub.sent = None, [], 0
    store = load(kind, limit=limit)
    if kind != "text":  # its pieces are read from the beginning of the file, and not encoded again
        assert hub.sent < size * 0.85
    assert read_store(store) == downloaded(load, kind, limit)
    assert [path.name for path in store.folder.parent.glob(".*")] == []


def test_damaged_part_is_encoded_again(load, hub, tmp_path):
    hub.left = 6000
    with pytest.raises(UnavailableError):
        load("jsonl")
    hub.left = None
    (folder,) = (tmp_path / "cache" / "lora-chat" / "dialogues").iterdir()
    for position in folder.glob("part-*/position.json"):
        position.write_text('{"position": {"files": 0, "start": {"rows": -1}}, "blocks": {}}')
    assert read_store(load("jsonl")) == downloaded(load, "jsonl")


def test_encoded_split_needs_no_hub(load, hub):
    first = load("parquet")
    hub.down = True
    assert load("parquet").folder == first.folder


@pytest.mark.parametrize(
    ("headers", "error"),
    [
        ({"Content-Range": "bytes 1-511/9"}, HubResponseError),
        ({"X-Repo-Commit": "4" * 40}, HubResponseError),
        ({"Content-Encoding": "gzip"}, HubResponseError),
        ({"Content-Length": str(10**9)}, IntegrityError),
    ],
)
def test_responses_that_were_not_requested_are_refused(load, hub, headers, error, tmp_path):
    hub.headers = headers
    with pytest.raises(error):
        load("jsonl")
    assert not list((tmp_path / "cache" / "lora-chat" / "dialogues").glob("[!.]*"))


def test_whole_file_in_place_of_a_later_part_is_refused(load, hub):
    hub.sends_whole = True
    with pytest.raises(HubResponseError, match="a part of it was requested"):
        load("jsonl")


def test_altered_file_is_refused_at_its_end(load, hub, tmp_path):
    name, content = FILES["jsonl"]
    hub.lie[name] = content.replace(b"question 109", b"question 901")
    with pytest.raises(IntegrityError, match="SHA-256"):
        load("jsonl")
    assert not list((tmp_path / "cache" / "lora-chat" / "dialogues").glob("[!.]*"))


def test_archive_is_refused_with_the_fix(load, hub, monkeypatch):
    monkeypatch.setitem(FILES, "zip", ("train.jsonl", b"PK\x03\x04" + b"x" * 3000))
    with pytest.raises(DataError, match=r"zip archive, which cannot be streamed.*data\.streaming=false"):
        load("zip")


def test_streaming_without_a_data_set_on_the_hub_is_refused():
    with pytest.raises(ValueError, match="no source is on the hub"):
        DataSection(train="a.jsonl", streaming=True)
    assert DataSection(train="a.jsonl", validation={"hub": "friend/talk"}, streaming=True).streaming
