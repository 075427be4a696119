"""A known file is fetched from a package index, continued after a broken connection, and never another file."""

import contextlib
import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from lora_chat.errors import IntegrityError, UnavailableError
from lora_chat.system import index_download
from lora_chat.system.index_download import IndexFile, downloaded_file
from lora_chat.system.index_page import find_links
from lora_chat.system.index_settings import read_index_settings

CONTENT = bytes(range(256)) * 400
NAME = "known-1.0-py3-none-any.whl"
FILE = IndexFile("known", NAME, len(CONTENT), hashlib.sha256(CONTENT).hexdigest())


class Index(ThreadingHTTPServer):
    """A package index of one file, which misbehaves as a test says."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.server_port}"
        self.content, self.stated, self.html = CONTENT, None, False
        self.breaks: list[int] = []  # bytes after which each request for the file breaks
        self.ignores_ranges = self.endless = self.compressed = False
        self.redirect: str | None = None
        self.login: str | None = None
        self.requests: list[tuple[str, str | None]] = []


class Handler(BaseHTTPRequestHandler):
    server: Index

    def do_GET(self):
        index = self.server
        index.requests.append((self.path, self.headers["Range"]))
        if index.login and self.headers["Authorization"] != index.login:
            return self.answer(401, b"")
        if self.path == "/simple/known/":
            return self.send_page()
        if index.redirect and self.path.startswith("/files/"):
            return self.answer(302, b"", Location=index.redirect)
        if self.path not in (f"/files/{NAME}", f"/elsewhere/{NAME}"):
            return self.answer(404, b"")
        self.send_file()

    def send_page(self):
        url, stated = f"../../files/{NAME}", self.server.stated
        if self.server.html:
            link = f'<a href="{url}#sha256={stated}">' if stated else f'<a href="{url}">'
            return self.answer(
                200, f"<html><a href='x.zip'>x</a>{link}{NAME}</a></html>".encode(), Content_Type="text/html"
            )
        files = [
            {"filename": "../../evil", "url": "/evil"},
            {"filename": NAME, "url": url, "hashes": {"sha256": stated}},
        ]
        self.answer(200, json.dumps({"files": files}).encode(), Content_Type="application/vnd.pypi.simple.v1+json")

    def send_file(self):
        index, begin = self.server, 0
        if (wanted := self.headers["Range"]) and not index.ignores_ranges:
            begin = int(wanted.removeprefix("bytes=").removesuffix("-"))
        body = index.content[begin:]
        self.send_response(206 if begin else 200)
        if begin:
            self.send_header("Content-Range", f"bytes {begin}-{len(index.content) - 1}/{len(index.content)}")
        if index.compressed:
            self.send_header("Content-Encoding", "gzip")
        if not index.endless:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: index.breaks.pop(0)] if index.breaks else body)
        while index.endless:
            self.wfile.write(bytes(65536))

    def answer(self, status, body, **headers):
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass

    def handle(self):
        with contextlib.suppress(ConnectionError):  # the client has enough
            super().handle()


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    for name in ("PIP_EXTRA_INDEX_URL", "PIP_FIND_LINKS", "PIP_NO_INDEX", "UV_INDEX", "UV_DEFAULT_INDEX", "UV_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(index_download, "_FIRST_WAIT_SECONDS", 0.0)
    return tmp_path / "cache" / "lora-chat" / "downloads"


@pytest.fixture
def index(monkeypatch):
    server = Index()
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    monkeypatch.setenv("PIP_INDEX_URL", f"{server.address}/simple")
    yield server
    server.shutdown()
    server.server_close()


def fetch():
    with downloaded_file(FILE, "the known file", "ask again") as path:
        assert path.name == NAME
        return path.read_bytes()


@pytest.mark.parametrize("html", [False, True])
@pytest.mark.parametrize("stated", [None, FILE.sha256])
def test_fetches_the_file_and_leaves_nothing(index, cache, messages, html, stated):
    index.html, index.stated = html, stated
    assert fetch() == CONTENT
    assert [path.name for path in cache.iterdir()] == [".lock"]
    assert messages == ["Fetching the known file (0.1 MB, once) from 127.0.0.1"]


def test_continues_where_the_connection_broke(index):
    index.breaks = [1000, 0, 5000]
    assert fetch() == CONTENT
    assert [wanted for path, wanted in index.requests[1:]] == [None, "bytes=1000-", "bytes=1000-", "bytes=6000-"]


def test_next_call_continues_an_unfinished_download(index, cache):
    index.breaks = [3000, 0, 0, 0]
    with pytest.raises(UnavailableError, match=r"stopped after 0\.0 MB of 0\.1 MB.*next call continues"):
        fetch()
    assert (cache / f"{NAME}.part").stat().st_size == 3000
    index.requests.clear()
    assert fetch() == CONTENT
    assert index.requests[1][1] == "bytes=3000-"


def test_begins_again_if_the_server_knows_no_ranges(index):
    index.breaks, index.ignores_ranges = [3000], True
    assert fetch() == CONTENT


def test_begins_again_if_the_unfinished_download_is_of_another_file(index, cache):
    cache.mkdir(parents=True, mode=0o700)
    (cache / f"{NAME}.part").write_bytes(b"x" * 3000)
    assert fetch() == CONTENT


def test_planted_links_in_the_cache_are_not_followed(index, cache, tmp_path):
    cache.mkdir(parents=True, mode=0o700)
    (tmp_path / "precious").write_bytes(CONTENT[:100])
    (cache / f"{NAME}.part").symlink_to(tmp_path / "precious")
    (cache / NAME).symlink_to(tmp_path / "precious")
    assert fetch() == CONTENT
    assert (tmp_path / "precious").read_bytes() == CONTENT[:100]


@pytest.mark.parametrize("content", [bytes(len(CONTENT)), CONTENT[:-1], CONTENT + b"x"])
def test_refuses_another_file_of_the_same_name(index, cache, content):
    index.content = content
    with pytest.raises(IntegrityError, match="another file with the name known-"):
        fetch()
    assert [path.name for path in cache.iterdir()] == [".lock"]


def test_refuses_a_file_whose_stated_digest_differs_without_a_download(index):
    index.stated = "0" * 64
    with pytest.raises(IntegrityError, match="another file"):
        fetch()
    assert len(index.requests) == 1


def test_reads_no_more_than_the_size_of_an_endless_answer(index, cache):
    index.endless = True
    assert fetch() == CONTENT
    index.content = bytes(5)
    with pytest.raises(IntegrityError, match="another file"):
        fetch()
    assert not (cache / NAME).exists()


def test_refuses_a_compressed_answer(index):
    index.compressed = True
    with pytest.raises(UnavailableError, match="compressed"):
        fetch()


def test_follows_a_redirect_but_not_a_loop(index):
    index.redirect = f"{index.address}/elsewhere/{NAME}"
    assert fetch() == CONTENT
    index.redirect = f"{index.address}/files/{NAME}"
    with pytest.raises(UnavailableError, match="redirects more than 5 times"):
        fetch()


@pytest.mark.parametrize(
    "url", ["http://example.com/x", "ftp://example.com/x", "file:///etc/passwd", "https://127.0.0.1/x"]
)
def test_an_encrypted_index_leads_neither_to_plain_http_nor_into_this_machine(url):
    client = index_download.IndexClient("https://user:secret@example.com/simple", None)
    with pytest.raises(UnavailableError, match=r"https://example\.com/simple leads to") as raised, client.open(url, {}):
        pass
    assert "secret" not in str(raised.value)
    client.close()


def test_sends_the_login_only_to_the_index(index, monkeypatch):
    index.login = "Basic dXNlcjpAIQ=="
    monkeypatch.setenv("PIP_INDEX_URL", f"http://user:%40!@127.0.0.1:{index.server_port}/simple")
    assert fetch() == CONTENT
    index.redirect = f"http://localhost:{index.server_port}/elsewhere/{NAME}"
    with pytest.raises(UnavailableError, match="status 401"):
        fetch()


def test_takes_the_file_from_a_folder_without_a_network(tmp_path, monkeypatch, index):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(UnavailableError, match=r"no index is configured\.\nFix: ask again"):
        fetch()
    (tmp_path / NAME).write_bytes(CONTENT)
    monkeypatch.setenv("PIP_FIND_LINKS", f"/nowhere {tmp_path.as_uri()}")
    assert fetch() == CONTENT
    assert not index.requests


def test_asks_the_next_index_and_names_all_that_failed(index, monkeypatch):
    monkeypatch.setenv("PIP_EXTRA_INDEX_URL", f"{index.address}/simple")
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    assert fetch() == CONTENT
    monkeypatch.setenv("PIP_EXTRA_INDEX_URL", f"{index.address}/other")
    with pytest.raises(UnavailableError, match=r"127.0.0.1:9/simple does not answer.*/other has no known-1.0"):
        fetch()


def test_settings_of_pip_and_uv_are_read(tmp_path, monkeypatch):
    monkeypatch.delenv("PIP_INDEX_URL", raising=False)
    assert read_index_settings().indexes == ("https://pypi.org/simple",)
    (tmp_path / "pip.conf").write_text(
        "[global]\nindex_url = https://a/simple/\nextra-index-url = https://b https://c\ncert=/x.pem"
    )
    monkeypatch.setenv("PIP_CONFIG_FILE", str(tmp_path / "pip.conf"))
    monkeypatch.delenv("PIP_CERT", raising=False)
    settings = read_index_settings()
    assert settings.indexes == ("https://a/simple", "https://b", "https://c") and settings.certificates == "/x.pem"
    monkeypatch.setenv("UV_DEFAULT_INDEX", "company=https://d/simple")
    assert read_index_settings().indexes[0] == "https://d/simple"
    monkeypatch.setenv("UV_OFFLINE", "true")
    assert read_index_settings().is_offline
    (tmp_path / "pip.conf").write_text("\0[[")
    assert read_index_settings().indexes == ("https://d/simple",)


@pytest.mark.parametrize("page", [b"[]", b"{}", b'{"files": 3}', b'{"files": [{"url": "x"}]}', b"\xff", b"[" * 100_000])
def test_unreadable_pages_have_no_links(page):
    assert find_links(page, "application/json", "https://x/", NAME) == []
