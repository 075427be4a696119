"""Hostile hubs: every invalid response is refused with one message, and files are written only in the hub's cache."""

import gzip
import itertools
import json
import os
import re
import sys
import zlib

import pytest
from hub_stand_in import COMMIT, NAME, StandIn

from lora_chat.config.recipe import BaseSection
from lora_chat.errors import IntegrityError, LoraChatError, UnavailableError
from lora_chat.models.base_config import find_base_config
from lora_chat.models.hub import find_cached_base, find_or_download_base
from lora_chat.system import hub_client, hub_guard
from lora_chat.system.cache_dir import cache_dir
from lora_chat.system.hub_client import HubFailureError, RemoteFile, download_files, find_commit, list_files

pytestmark = pytest.mark.slow

TOKEN = "hf_CanaryCanaryCanary"
UP = "../" * 12
CONFIG = "config.json"


@pytest.fixture
def endpoint(tmp_path, tmp_path_factory, monkeypatch):
    """Return a function that points huggingface_hub to an endpoint, with an empty cache and a token."""
    import huggingface_hub
    from huggingface_hub import constants

    for name in [name for name in os.environ if name.startswith("HF_") or "proxy" in name.lower()]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("own-cache")))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache" / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)

    def use(address):
        monkeypatch.setattr(constants, "ENDPOINT", address)
        template = address + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)

    huggingface_hub.close_session()
    yield use
    huggingface_hub.close_session()


@pytest.fixture
def hub(endpoint):
    stand_in = StandIn()
    endpoint(stand_in.endpoint)
    yield stand_in
    stand_in.server.shutdown()
    stand_in.server.server_close()


@pytest.fixture
def written(tmp_path):
    """Return a function that lists the written files outside of the cache, and the blobs and snapshots in it."""

    def written():
        files = [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if not path.is_dir()]
        outside = [file for file in files if not file.startswith("cache/hub/")]
        return outside + [file for file in files if "/blobs/" in file or "/snapshots/" in file]

    return written


def fetch(revision=None):
    return find_or_download_base(NAME, revision)


def refused(hub, written, match, code=8, revision=None):
    """Assert that a base is refused in one message that neither quotes the token nor leaves a refused file."""
    with pytest.raises(LoraChatError) as caught:
        fetch(revision)
    said = str(caught.value)
    assert caught.value.exit_code == code, said
    assert match in said, said
    assert said.count("\n") <= 1 and said.replace("\n", "").isprintable() and len(said) < 600
    assert TOKEN not in said
    for file in written():
        assert re.fullmatch(r"cache/hub/models--evil--base/(snapshots/5{40}|blobs)/[\w.]+", file)
        assert "/blobs/" in file or file.endswith(("/model.safetensors", f"/{CONFIG}"))
    return said


def test_downloads_a_base_once(hub):
    folder = fetch()
    assert folder.name == COMMIT
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == hub.files
    assert {token for _, path, token in hub.asked if NAME in path} == {f"Bearer {TOKEN}"}
    hub.asked.clear()
    assert fetch() == folder and find_cached_base(NAME, None) == folder
    assert hub.asked == []


ETAGS = {
    "climbs": f'"{UP}home/.bash_profile"',
    "weak and climbs": f'W/"{UP}x"',
    "is absolute": '"/etc/cron.d/x"',
    "has a separator": '"aa/bb"',
    "has a backslash": '"aa\\bb"',
    "is dots": '".."',
    "is hidden": '".ssh"',
    "is empty": '""',
    "is long": f'"{"a" * 129}"',
    "has a space": '"aa bb"',
    "is a device": '"NUL"',
    "is a stream": '"aa:bb"',
    "is not ASCII": '"\xe9"',
    "comes twice": ['"aa"', '"bb"'],
}


@pytest.mark.parametrize("header", ["ETag", "X-Linked-Etag"])
@pytest.mark.parametrize("kind", ETAGS)
@pytest.mark.parametrize("moved", [False, True])
def test_refuses_etag_that_is_not_a_file_name(hub, written, header, kind, moved):
    hub.headers[CONFIG] = {header: ETAGS[kind]}
    if moved:
        hub.redirects[f"/{NAME}/resolve/{COMMIT}/{CONFIG}"] = f"/api/resolve-cache/{COMMIT}/{CONFIG}"
    refused(hub, written, "its ETag is")


@pytest.mark.parametrize("tag", ['W/"0a1b"', "0a1b", '"0a1b-12"', '"66f1a2b3-2d5"', f'"{"e" * 64}"', '"0x8DC1A.b_c=+"'])
def test_accepts_etags_of_real_servers(hub, tag):
    hub.headers[CONFIG] = {"ETag": tag}
    assert (fetch() / CONFIG).read_bytes() == hub.files[CONFIG]


COMMITS = ["../../x", "5" * 39, "5" * 41, "Z" * 40, "A" * 40, "/etc", ".", ""]


@pytest.mark.parametrize("commit", COMMITS)
def test_refuses_invalid_commit(hub, written, commit):
    hub.sha = commit
    refused(hub, written, "its commit is")


@pytest.mark.parametrize("commit", [*COMMITS[:-1], "6" * 40])
def test_refuses_file_of_another_commit(hub, written, commit):
    hub.headers[CONFIG] = {"X-Repo-Commit": commit}
    refused(hub, written, "its commit is")


def test_refuses_another_commit_than_requested(hub, written):
    with pytest.raises(UnavailableError, match="was asked for"):
        find_commit(NAME, "6" * 40, "model")
    assert written() == []


def test_missing_file_is_not_recorded_outside_the_cache(hub, written):
    hub.statuses[CONFIG] = 404
    hub.headers[CONFIG] = {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": f"{UP}planted"}
    refused(hub, written, "its commit is")


@pytest.mark.parametrize(
    "revision", [f"{UP}x", "/etc/x", "a/../b", "a//b", ".x", "a/.x", "a\\b", "a\nb", "x" * 300, ""]
)
def test_a_revision_cannot_leave_the_folder_of_refs(hub, written, revision):
    refused(hub, written, "cannot be a revision", revision=revision)
    assert hub.asked == []


SIZES = {
    "huge": ("X-Linked-Size", str(2**60), 8),
    "negative": ("X-Linked-Size", "-1", 8),
    "a word": ("X-Linked-Size", "many", 8),
    "endless digits": ("X-Linked-Size", "9" * 5000, 8),
    "larger than listed": ("X-Linked-Size", "24", 7),
    "body larger than listed": ("Content-Length", "24", 7),
    "body of petabytes": ("Content-Length", str(2**50), 7),
}


@pytest.mark.parametrize("kind", SIZES)
def test_a_declared_size_is_checked(hub, written, kind):
    header, value, code = SIZES[kind]
    hub.headers[CONFIG] = {header: value}
    refused(hub, written, "the size of" if code == 8 else "bytes; 23 are allowed", code=code)


def test_an_endless_body_is_cut_off(hub, written):
    sent = []

    def endless():
        while True:
            sent.append(1)
            yield b"x" * 65536

    hub.bodies[CONFIG] = endless
    refused(hub, written, "or more bytes; 23 are allowed", code=7)
    assert len(sent) < 1000


@pytest.mark.parametrize("declared", [True, False])
def test_a_short_body_is_not_kept(hub, written, monkeypatch, declared):
    monkeypatch.setattr("time.sleep", lambda _: None)  # the library waits between its tries
    hub.bodies[CONFIG] = lambda: [b"{}"]
    hub.headers[CONFIG] = {"Content-Length": "23"} if declared else {}
    match = "cannot be reached" if declared else "is not the file that the hub lists"
    refused(hub, written, match, code=8 if declared else 7)
    assert not [file for file in written() if file.endswith(CONFIG)]


def test_slow_body_times_out(hub, written, monkeypatch):
    clock = itertools.count(0, 100)
    monkeypatch.setattr(hub_guard.time, "monotonic", lambda: next(clock))
    hub.bodies[CONFIG] = lambda: [b"x"] * 23
    refused(hub, written, "too slowly")


@pytest.mark.parametrize("route", ["info", "tree", CONFIG])
@pytest.mark.parametrize("encoding", ["gzip", "deflate", "br", "gzip, gzip"])
def test_compressed_body_is_never_unpacked(hub, written, route, encoding):
    packed = (zlib.compress if encoding == "deflate" else gzip.compress)(b" " * 10_000_000)
    hub.bodies[route], hub.headers[route] = packed, {"Content-Encoding": encoding, "Content-Length": "10"}
    refused(hub, written, "it is compressed")


NAMES = [
    f"{UP}x.json", "/etc/x.json", "a/../../x.json", "a\\..\\x.json", "C:x.json", "C:/x.json", "a\0.json", "a\n.json",
    "\x1b[2J.json", "\x9b.json", f"{'x' * 1001}.json", f"{'x' * 300}/a.json", "a//x.json", "./x.json", "a/.", "",
    "\ud800.json", None, 7, ["x.json"],
]  # fmt: skip


@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_a_file_s_name_must_stay_inside(hub, written, name):
    hub.tree = [*hub.listing(), {"type": "file", "path": name, "size": 1, "oid": "0" * 40}]
    refused(hub, written, "it names a file")
    hub.tree = None
    hub.bodies["info"] = json.dumps({"sha": COMMIT, "siblings": [{"rfilename": name}]}).encode()
    refused(hub, written, "it names a file")


ENTRIES = {
    "a size that is none": ({"size": "many"}, "the size of"),
    "no size": ({"size": None}, "the size of"),
    "a negative size": ({"size": -5}, "the size of"),
    "a hash that climbs": ({"lfs": {"oid": f"{UP}x", "size": 1, "pointerSize": 1}}, "the hash of"),
    "a hash that is none": ({"lfs": [1]}, "the hash of"),
    "a tokenizer of terabytes": ({"path": "tokenizer.json", "size": 2**42}, "bytes; the limit is 200,000,000"),
    "a config of 2 MB": ({"path": CONFIG, "size": 2_000_000}, "bytes; the limit is 1,000,000"),
}


@pytest.mark.parametrize("kind", ENTRIES)
def test_a_listing_s_entries_are_checked(hub, written, kind):
    change, match = ENTRIES[kind]
    hub.tree = [{"type": "file", "path": "x.json", "size": 1, "oid": "0" * 40, **change}]
    refused(hub, written, match, code=7 if "limit" in match else 8)


ANSWERS = {
    "no JSON": b"<html>",
    "nothing": b"",
    "not UTF-8": b'{"sha": "\xff"}',
    "nested deeply": b"[" * 100_000,
    "nested but whole": b"[" * 5000 + b"]" * 5000,
    "a key twice": b'{"sha": "%s", "sha": "../x"}' % COMMIT.encode(),
    "endless digits": b'{"x": ' + b"9" * 10_000 + b"}",
    "siblings that are none": b'{"siblings": {"rfilename": "x"}}',
}


@pytest.mark.parametrize("route", ["info", "tree"])
@pytest.mark.parametrize("kind", ANSWERS)
def test_refuses_invalid_json(hub, written, route, kind):
    hub.bodies[route] = ANSWERS[kind]
    refused(hub, written, "The hub's response is refused")


@pytest.mark.parametrize("route", ["info", "tree"])
@pytest.mark.parametrize("declared", [True, False])
def test_huge_response_is_cut_off(hub, written, monkeypatch, route, declared):
    monkeypatch.setattr(hub_guard, "MAX_RESPONSE_BYTES", 100_000)
    body = b"[" + b" " * 1_000_000 + b"]"
    hub.bodies[route] = body if declared else lambda: [body]
    refused(hub, written, "bytes; 100,000 are allowed")


def test_refuses_endless_listing(hub, written, monkeypatch):
    monkeypatch.setattr(hub_guard, "MAX_RESPONSES", 20)
    hub.headers["tree"] = {"Link": f'<{hub.endpoint}/api/models/{NAME}/tree/next>; rel="next"'}
    refused(hub, written, "its listing does not end")
    assert len(hub.asked) < 30


def test_a_listing_of_too_many_files_is_refused(hub, written, monkeypatch):
    monkeypatch.setattr("lora_chat.system.hub_answers.MAX_FILES", 1)
    refused(hub, written, "it lists 2 files; 1 are allowed")


@pytest.mark.parametrize("target", [
    "file:///etc/passwd", "ftp://example.org/x", "http://example.org/x", "http://127.0.0.2/x", "http://localhost/x",
    "https://localhost/x", "https://127.0.0.1/x", "https://[::1]/x", "https://[::ffff:127.0.0.1]/x",
    "https://169.254.169.254/latest/meta-data", "https://2130706433/x", "https://0x7f.1/x", "https://0/x",
    "https://user:secret@example.org/x", "//example.org/x", "http://[", "https://example.org/\x7fx",
])  # fmt: skip
@pytest.mark.parametrize("route", ["info", CONFIG])
def test_refuses_redirect_to_unsafe_address(hub, written, route, target):
    hub.statuses[route], hub.headers[route] = 302, {"Location": target}
    said = refused(hub, written, "The hub's response is refused: it")
    assert "secret" not in said


@pytest.mark.parametrize("route", ["info", CONFIG])
def test_a_loop_of_redirects_ends(hub, written, route):
    hub.statuses[route], hub.headers[route] = 307, {"Location": f"/{NAME}/resolve/{COMMIT}/{CONFIG}"}
    hub.statuses[CONFIG], hub.headers[CONFIG] = 307, {"Location": f"/{NAME}/resolve/{COMMIT}/{CONFIG}"}
    refused(hub, written, "cannot be reached (TooManyRedirects)")
    assert len(hub.asked) < 40


@pytest.mark.parametrize("location", ["{other}/there", "{other}/there?signed=1"])
def test_another_port_gets_the_request_without_the_token(hub, location):
    other = StandIn()
    other.files = {"there": hub.files[CONFIG]}
    hub.statuses[CONFIG] = 302
    hub.headers[CONFIG] = {"Location": location.format(other=other.endpoint), "X-Linked-Size": "23"}
    assert (fetch() / CONFIG).read_bytes() == hub.files[CONFIG]
    assert [(method, token) for method, _, token in other.asked] == [("GET", None)]
    other.server.shutdown()


ROUTES = [
    "/api/resolve-cache/models/evil/base/{commit}/{file}?%2Fevil%2Fbase%2Fresolve%2F{commit}%2F{file}=&etag=%22{commit}%22",
    "/moved/base/resolve/{commit}/{file}",
    "../../../moved/base/resolve/{commit}/{file}?a=b c+d%20e&f='g'",
]


@pytest.mark.parametrize("route", ROUTES)
def test_files_behind_a_redirect_of_the_hub_itself_are_taken(hub, route):
    hub.files["merges.txt"] = b"#version: 0.2\n" * 100_000
    for file in hub.files:
        where = route.format(commit=COMMIT, file=file)
        hub.redirects[f"/{NAME}/resolve/{COMMIT}/{file}"] = where
    folder = fetch()
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == hub.files
    assert all(token == f"Bearer {TOKEN}" for _, path, token in hub.asked if "base" in path)


def test_a_page_of_names_from_another_host_is_checked_too(hub, written):
    other = StandIn()
    other.tree = [{"type": "file", "path": f"{UP}x.json", "size": 1, "oid": "0" * 40}]
    hub.headers["tree"] = {"Link": f'<{other.endpoint}/pages/tree/next>; rel="next"'}
    other.route = lambda path: ("tree", json.dumps(other.tree).encode())
    refused(hub, written, "it names a file")
    other.server.shutdown()


@pytest.mark.parametrize("route", ["info", "tree"])
def test_etags_of_the_api_are_ignored(hub, route):
    hub.headers[route] = {"ETag": 'W/"1d3-xMbf/0aK+/abc"'}
    assert fetch().name == COMMIT


def test_a_redirected_body_has_the_limit_of_its_file(hub, written):
    other = StandIn()
    other.files = {"there": b"x" * 100}
    hub.statuses[CONFIG], hub.headers[CONFIG] = 302, {"Location": f"{other.endpoint}/there"}
    refused(hub, written, "bytes; 23 are allowed", code=7)
    other.server.shutdown()


def test_the_next_page_on_another_port_gets_no_token(hub):
    other = StandIn()
    hub.headers["tree"] = {"Link": f'<{other.endpoint}/api/models/{NAME}/tree/next>; rel="next"'}
    other.tree = []
    list_files(NAME, COMMIT, "model")
    assert [token for *_, token in other.asked] == [None]
    other.server.shutdown()


HUGGING_FACE = "https://huggingface.co"


@pytest.mark.parametrize(
    ("address", "url", "kept"),
    [
        (HUGGING_FACE, "https://huggingface.co/api/x", True),
        (HUGGING_FACE, "https://HuggingFace.co:443/api/x", True),
        (HUGGING_FACE, "https://huggingface.co:444/api/x", False),
        (HUGGING_FACE, "https://huggingface.co.evil.example/api/x", False),
        (HUGGING_FACE, "https://cdn-lfs.huggingface.co/x", False),
        (HUGGING_FACE, "https://evil.example/huggingface.co", False),
        (HUGGING_FACE, "https://hf.co/x", False),
        ("https://mirror.example/hf", "https://mirror.example/hf/api/x", True),
        ("https://mirror.example/hf", "https://huggingface.co/api/x", False),
        ("http://127.0.0.1:8080", "http://127.0.0.1:8080/api/x", True),
        ("http://127.0.0.1:8080", "http://127.0.0.1:8081/api/x", False),
        ("http://127.0.0.1:8080", "https://127.0.0.1.evil.example/x", False),
    ],
)
def test_token_goes_only_to_the_endpoint(endpoint, address, url, kept):
    import httpx2

    endpoint(address)
    request = httpx2.Request("GET", url, headers={"Authorization": f"Bearer {TOKEN}"})
    hub_guard.install_guard().check_request(request)
    assert ("Authorization" in request.headers) is kept
    assert request.headers["Accept-Encoding"] == "identity"
    assert all(request.extensions["timeout"][kind] for kind in ("connect", "read", "write"))


def test_the_token_is_not_sent_without_encryption(endpoint, monkeypatch):
    endpoint("http://mirror.example:8080")
    with pytest.raises(UnavailableError, match="not encrypted") as caught:
        find_commit(NAME, None, "model")
    assert TOKEN not in str(caught.value)


def test_unencrypted_connection_is_reported_once(endpoint, messages):
    import httpx2

    endpoint("http://mirror.example:8080")
    guard = hub_guard.HubGuard()
    for _ in range(2):
        guard.check_request(httpx2.Request("GET", "http://mirror.example:8080/api/x"))
    assert "".join(messages).count("is not encrypted") == 1


def test_download_that_cannot_fit_is_not_started(hub, written):
    hub.tree = hub.listing()
    hub.tree[1]["size"] = hub.tree[1]["lfs"]["size"] = 2**49
    refused(hub, written, "562,950.0 GB are needed", code=4)
    assert not [path for _, path, _ in hub.asked if "resolve" in path]


@pytest.mark.parametrize("status", [429, 503])
@pytest.mark.parametrize("header", [{"Retry-After": "999999999"}, {"Retry-After": "9" * 400}])
def test_long_retry_after_is_refused(hub, written, status, header):
    hub.statuses["info"], hub.headers["info"] = status, header
    hub.statuses["tree"], hub.headers["tree"] = status, header
    refused(hub, written, "asks to wait for")


def test_a_warning_of_the_hub_does_not_reach_the_terminal(hub, capfd):
    hub.headers["info"] = {"X-HF-Warning": "topic; OWNED BY THE HUB"}
    hub.headers[CONFIG] = {"X-HF-Warning": "topic; OWNED BY THE HUB", "Content-Disposition": 'filename="OWNED";'}
    fetch()
    out, err = capfd.readouterr()
    assert "OWNED" not in out + err


def test_a_header_with_escape_sequences_is_refused(hub, written):
    hub.headers["info"] = {"X-Request-Id": "\x1b[2J"}
    refused(hub, written, "its header x-request-id contains control characters")


def test_weights_must_match_the_listing(hub, written):
    hub.tree = hub.listing()
    hub.files["model.safetensors"] = bytes(len(hub.files["model.safetensors"]))
    refused(hub, written, "model.safetensors of evil/base is not the file that the hub lists", code=7)
    assert not [file for file in written() if file.endswith("model.safetensors")]
    assert find_cached_base(NAME, None) is None


def marks():
    return sorted(cache_dir("hub-pending").iterdir())


def kill_before_comparing(hub, monkeypatch):
    """Download altered weights, and kill the process between the move of a file and its check."""
    honest = hub.files["model.safetensors"]
    hub.tree = hub.listing()
    hub.files["model.safetensors"] = bytes(len(honest))

    def killed(*_):
        raise SystemExit(137)

    with monkeypatch.context() as patch:
        patch.setattr(hub_client, "_check_download", killed)
        with pytest.raises(SystemExit):
            fetch()
    hub.files["model.safetensors"] = honest
    return honest


def test_a_file_that_was_never_compared_is_not_used_later(hub, monkeypatch):
    honest = kill_before_comparing(hub, monkeypatch)
    assert len(marks()) == 1
    assert find_cached_base(NAME, None) is None
    with pytest.raises(IntegrityError, match="is not the file that the hub lists"):
        fetch()
    folder = fetch()
    assert (folder / "model.safetensors").read_bytes() == honest
    assert marks() == []
    assert find_cached_base(NAME, None) == folder


@pytest.mark.parametrize("mark", ["whole", "cut short", "of another shape"])
def test_correct_interrupted_download_is_used_offline(hub, monkeypatch, mark):
    with monkeypatch.context() as patch:
        patch.setattr(hub_client, "_check_download", lambda *_: sys.exit(137))
        with pytest.raises(SystemExit):
            fetch()
    (path,) = marks()
    if mark != "whole":
        path.write_text('{"files": {"config.js' if mark == "cut short" else '{"files": [3]}')
    hub.asked.clear()
    assert (find_cached_base(NAME, None) is not None) == (mark == "whole")
    assert hub.asked == []
    assert fetch().name == COMMIT
    assert marks() == []


def test_files_of_a_second_listing_are_not_downloaded(hub, monkeypatch, written):
    first = hub.listing()
    hub.files = {**hub.files, "more.json": b"{}", "chat_template.jinja": b"evil"}
    answers = itertools.chain([first], itertools.repeat(hub.listing()))
    monkeypatch.setattr(hub, "listing", lambda: next(answers))
    folder = fetch()
    assert sorted(path.name for path in folder.iterdir()) == [CONFIG, "model.safetensors"]
    assert len([path for _, path, _ in hub.asked if "/tree/" in path]) == 2


@pytest.mark.parametrize("answer", ["a range", "another range", "a range of nothing", "too much of a range"])
def test_partial_response_is_not_taken_for_the_file(hub, written, answer):
    size = len(hub.files["model.safetensors"])
    ranges = {
        "a range": f"bytes 0-{size - 1}/{size}",
        "another range": f"bytes 5-{size - 1}/{size}",
        "a range of nothing": "bytes */0",
        "too much of a range": f"bytes 0-{size - 1}/{10**18}",
    }
    hub.tree = hub.listing()
    hub.statuses["model.safetensors"] = 206
    hub.headers["model.safetensors"] = {"Content-Range": ranges[answer]}
    hub.files["model.safetensors"] = hub.files["model.safetensors"][:-1] + b"!"
    with pytest.raises(LoraChatError):
        fetch()
    assert find_cached_base(NAME, None) is None
    assert not [file for file in written() if file.endswith("model.safetensors")]


@pytest.mark.parametrize("planted", ["beginning", "whole", "longer"])
def test_a_planted_partial_download_does_not_become_part_of_a_file(hub, planted):
    blobs = fetch().parents[1] / "blobs"
    honest = hub.files["model.safetensors"]
    blob = (blobs.parent / "snapshots" / COMMIT / "model.safetensors").resolve()
    blob.unlink()
    (blobs.parent / "snapshots" / COMMIT / "model.safetensors").unlink()
    size = {"beginning": 9, "whole": len(honest), "longer": 2 * len(honest)}[planted]
    blob.with_name(blob.name + ".incomplete").write_bytes(bytes(size))
    assert (fetch() / "model.safetensors").read_bytes() == honest


@pytest.mark.parametrize("name", ["../../../../escaped.json", "/tmp/escaped.json", "..\\escaped.json"])
def test_planted_listing_of_the_library_has_no_effect(hub, written, name):
    folder = fetch()
    (folder / CONFIG).unlink()
    trees = folder.parents[1] / "trees" / f"{COMMIT}.json"
    planted = json.loads(trees.read_text())
    planted["files"][name] = planted["files"].pop(CONFIG)
    trees.write_text(json.dumps(planted))
    from huggingface_hub import _tree_cache

    _tree_cache._IN_MEMORY_TREE_CACHE.clear()
    before = [file for file in written() if not file.startswith("cache/hub/")]
    with pytest.raises(LoraChatError):
        fetch()
    assert [file for file in written() if not file.startswith("cache/hub/")] == before


def test_xet_is_never_used(hub):
    from huggingface_hub import constants

    for name in hub.files:
        hub.headers[name] = {"X-Xet-Hash": "a" * 64, "X-Xet-Refresh-Route": f"{hub.endpoint}/xet"}
    fetch()
    assert constants.HF_HUB_DISABLE_XET is True
    assert not [path for _, path, _ in hub.asked if "xet" in path]


def plant(folder, kind, tmp_path):
    victim = folder / CONFIG
    victim.unlink()
    if kind == "a pipe":
        os.mkfifo(victim)
    elif kind == "a folder":
        (folder / "more").symlink_to(tmp_path)
        victim.write_text("{}")
    elif kind == "a blob that is a link":
        blob = folder.parents[1] / "blobs" / "f00"
        blob.symlink_to(tmp_path / "secret")
        victim.symlink_to(blob)
    else:
        victim.symlink_to(tmp_path / "secret")


@pytest.mark.parametrize("kind", ["a link", "a pipe", "a folder", "a blob that is a link"])
def test_a_planted_cache_is_refused_by_name(hub, tmp_path, kind):
    (tmp_path / "secret").write_text('{"model_type": "llama"}')
    folder = fetch()
    plant(folder, kind, tmp_path)
    with pytest.raises(IntegrityError, match=r"it contains a|leads elsewhere") as caught:
        fetch()
    assert str(folder) in str(caught.value)


@pytest.mark.parametrize("absolute", [True, False])
def test_planted_commit_of_a_branch_is_refused(hub, tmp_path, absolute):
    folder = fetch()
    elsewhere = tmp_path / "elsewhere" / "models--evil--base" / "snapshots" / COMMIT
    elsewhere.mkdir(parents=True)
    for file in folder.iterdir():
        (elsewhere / file.name).write_bytes(file.read_bytes())
    where = str(elsewhere) if absolute else os.path.relpath(elsewhere, folder.parent)
    (folder.parents[1] / "refs" / "main").write_text(where)
    with pytest.raises(IntegrityError, match="outside of its folder"):
        find_cached_base(NAME, None)


@pytest.mark.parametrize("place", ["", "snapshots", f"snapshots/{COMMIT}", "blobs"])
def test_a_cached_base_that_any_user_can_replace_is_refused(hub, place):
    folder = fetch()
    (folder.parents[1] / place).chmod(0o777)
    with pytest.raises(IntegrityError, match="Any user can write"):
        find_cached_base(NAME, None)


def test_a_location_without_a_redirect_is_checked_like_one(hub, written):
    hub.headers[CONFIG] = {"Location": "http://169.254.169.254/latest"}
    refused(hub, written, "it leads to http://169.254.169.254")


def test_a_planted_link_is_not_read_while_the_rest_is_downloaded(hub, tmp_path):
    (tmp_path / "secret").write_text('{"model_type": "llama"}')
    folder = fetch()
    (folder / CONFIG).unlink()
    (folder / CONFIG).symlink_to(tmp_path / "secret")
    with pytest.raises(IntegrityError, match="leads elsewhere"):
        download_files(NAME, None, COMMIT, {CONFIG: RemoteFile(23, None)})


def test_accepts_links_into_the_shared_blob_store(hub):
    folder = fetch()
    store = folder.parents[2] / "blobs" / "ab"
    store.mkdir(parents=True)
    blob = (folder / CONFIG).resolve()
    blob.rename(store / ("ab" * 32))
    blob.symlink_to(os.path.relpath(store / ("ab" * 32), blob.parent))
    assert find_cached_base(NAME, None) == folder


@pytest.mark.parametrize(
    "index", ["[]", "{}", '{"weight_map": 3}', '{"weight_map": {"a": "../x"}}', "[" * 9000, "\xff"]
)
def test_refuses_invalid_index(hub, index):
    hub.files["model.safetensors.index.json"] = index.encode("latin-1")
    with pytest.raises(IntegrityError, match=r"index\.json|not an index"):
        fetch()


def test_plan_reports_a_refused_response_for_a_known_base(hub):
    hub.headers[CONFIG] = {"ETag": f'"{UP}x"'}
    with pytest.raises(UnavailableError, match="The hub's response is refused"):
        find_base_config(BaseSection(name=NAME))


@pytest.mark.parametrize("config", [b"[]", b"3", b"{", b"[" * 9000, b"\xff"])
def test_refuses_invalid_config(hub, config):
    hub.files[CONFIG] = config
    with pytest.raises(UnavailableError, match=r"config\.json .*(is not|holds no|nested)"):
        find_base_config(BaseSection(name=NAME))


def test_unreachable_hub_is_reported(endpoint):
    endpoint("http://127.0.0.1:9")
    with pytest.raises(HubFailureError) as caught:
        find_commit(NAME, None, "model")
    assert caught.value.reason == "unreachable"


def test_the_command_line_refuses_a_hostile_mirror(hub, written, tmp_path, capsys, monkeypatch):
    from lora_chat.cli import main

    monkeypatch.chdir(tmp_path / "cache" if (tmp_path / "cache").is_dir() else tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache" / "hub" / "own"))
    hub.files["x.txt"], hub.headers["x.txt"] = b"OWNED", {"ETag": f'"{tmp_path}/.bash_profile"'}
    assert main(["chat", NAME]) == 8
    told = capsys.readouterr().err
    assert "The hub's response is refused: its ETag is" in told and "Traceback" not in told
    assert not (tmp_path / ".bash_profile").exists()
