"""Download a split of a hub data set once, at one commit, without code or pickles. The hub is a local server."""

import errno
import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote

import pytest

from lora_chat.data.reading.hub_dataset import HubFiles, find_hub_files
from lora_chat.errors import DataError, DiskFullError, LoraChatError, UnavailableError

TOKEN = "hf_aVerySecretToken"
OLD, NEW = "1" * 40, "2" * 40
SHARDS = {f"data/train-0000{n}-of-00003.parquet": b"PAR1" + bytes([n]) * 5000 for n in range(3)}


def card(*configs):
    return f"---\nlicense: mit\nconfigs: {json.dumps(configs)}\n---\n# Words\n".encode()


class Hub:
    """The content and behaviour of the fake hub, and the requests to it."""

    def __init__(self):
        self.commits, self.asked = {}, []
        self.branches = {"main": OLD}
        self.down = False
        self.refused = {}
        self.halves, self.half_sent = set(), threading.Event()

    def holds(self, files, commit=OLD):
        self.commits[commit] = {n: c if isinstance(c, bytes) else b'{"n": 1}\n' for n, c in dict(files).items()}

    def answer(self, path):
        """Return status, headers and content."""
        parts = [unquote(part) for part in path.strip("/").split("/")]
        if parts[:3] == ["api", "datasets", "friend"]:
            _, _, _, name, *rest = parts
            revision = rest[1] if rest else "main"
        elif parts[:2] == ["datasets", "friend"] and parts[3] == "resolve":
            name, revision, rest = parts[2], parts[4], parts[5:]
        else:
            name, revision, rest = "", "", []
        if name != "talk":
            return 401 if name == "private" else 404, {"X-Error-Code": "RepoNotFound"}, b"{}"
        commit = self.branches.get(revision, revision)
        if commit not in self.commits:
            return 404, {"X-Error-Code": "RevisionNotFound"}, b"{}"
        files = self.commits[commit]
        if parts[0] == "api" and rest[:1] == ["tree"]:
            tree = [{"type": "file", "path": n, "size": len(c), "oid": "0" * 40} for n, c in files.items()]
            return 200, {}, json.dumps([{"type": "directory", "path": "data", "oid": "0" * 40}, *tree]).encode()
        if parts[0] == "api":
            return 200, {}, json.dumps({"id": "friend/talk", "sha": commit}).encode()
        file = "/".join(rest)
        if file in self.refused:
            status, code = self.refused[file]
            return status, {"X-Error-Code": code} if code else {}, b"{}"
        if file not in files:
            return 404, {"X-Error-Code": "EntryNotFound"}, b"{}"
        etag = f'"{hash((commit, file)) & 0xFFFFFFFF:040x}"'
        return 200, {"ETag": etag, "X-Repo-Commit": commit}, files[file]


class Handler(BaseHTTPRequestHandler):
    hub: Hub

    def do_HEAD(self):
        self.respond(body=False)

    def do_GET(self):
        self.respond(body=True)

    def log_message(self, *args):
        pass

    def respond(self, body):
        path = self.path.split("?")[0]
        self.hub.asked.append(f"{self.command} {path}")
        if self.hub.down:
            return
        status, headers, content = self.hub.answer(path)
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if body and path.rpartition("/")[2] in self.hub.halves:
            self.wfile.write(content[: len(content) // 2])
            self.wfile.flush()
            self.hub.half_sent.set()
            threading.Event().wait(30)
        elif body:
            self.wfile.write(content)


@pytest.fixture(scope="module")
def server():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()


@pytest.fixture
def hub(server, tmp_path, monkeypatch):
    """An empty hub, an empty cache and a token."""
    import huggingface_hub
    from huggingface_hub import constants

    for name in [name for name in os.environ if name.startswith("HF_") or "proxy" in name.lower()]:
        monkeypatch.delenv(name)
    endpoint = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "notes"))
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", endpoint + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "home" / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    huggingface_hub.close_session()
    Handler.hub = Hub()
    yield Handler.hub
    huggingface_hub.close_session()


def find(split="train", subset=None, revision=None, name="friend/talk"):
    try:
        return find_hub_files(name, split, subset, revision)
    except LoraChatError as error:
        assert TOKEN not in str(error)
        raise


@pytest.fixture(autouse=True)
def no_token_in_messages(messages):
    """Check after each test that no message shows the token."""
    yield
    assert TOKEN not in "".join(messages)


def inside(found: HubFiles):
    """Return the names of the files in the repository, all of which must exist."""
    assert all(path.is_file() for path in found.paths)
    return [path.as_posix().split(f"/snapshots/{found.commit}/")[1] for path in found.paths]


def downloaded(hub):
    return sorted(line.split(f"/resolve/{OLD}/")[1] for line in hub.asked if line.startswith("GET /datasets/"))


def test_all_shards_of_a_split_are_downloaded_once_and_nothing_else(hub, messages):
    hub.holds({**SHARDS, "data/test-00000-of-00001.parquet": 1, "talk/tool.py": 1, "model.pkl": 1, "LICENSE": 1})
    found = find()
    assert found.commit == OLD
    assert inside(found) == list(SHARDS)
    assert [path.read_bytes() for path in found.paths] == list(SHARDS.values())
    assert downloaded(hub) == list(SHARDS)
    assert messages == [
        "Downloading friend/talk from the hub: train, data/train-00000-of-00003.parquet, "
        "data/train-00001-of-00003.parquet, data/train-00002-of-00003.parquet (0.0 MB)"
    ]
    hub.asked.clear()
    assert find() == found
    assert hub.asked == ["GET /api/datasets/friend/talk"]
    assert len(messages) == 1


def test_uses_the_files_that_the_card_names(hub):
    splits = [{"split": "train_sft", "path": ["words/b.jsonl", "words/a*.jsonl"]}, {"split": "test", "path": "t.csv"}]
    config = {"config_name": "default", "data_files": splits}
    files = ("words/a1.jsonl", "words/a2.jsonl", "words/b.jsonl", "words/c.jsonl", "t.csv", "train.jsonl")
    hub.holds({**dict.fromkeys(files), "README.md": card(config)})
    assert inside(find("train_sft")) == ["words/b.jsonl", "words/a1.jsonl", "words/a2.jsonl"]
    assert inside(find("test")) == ["t.csv"]
    with pytest.raises(DataError, match=r"has no split train\.\nIts splits: train_sft, test$"):
        find()


SUBSETS = ({"config_name": "en", "data_files": "en.jsonl"}, {"config_name": "de", "data_dir": "de"})


def test_a_subset_is_named_or_is_the_default_one(hub):
    hub.holds({"en.jsonl": 1, "de/train.csv": 1, "de/test.csv": 1, "README.md": card(*SUBSETS)})
    assert inside(find(subset="en")) == ["en.jsonl"]
    assert inside(find("test", subset="de")) == ["de/test.csv"]
    with pytest.raises(DataError, match=r"several subsets; name one\.\nIts subsets: en, de$"):
        find()
    with pytest.raises(DataError, match=r"has no subset fr\.\nIts subsets: en, de$"):
        find(subset="fr")
    hub.holds({"en.jsonl": 1, "README.md": card(SUBSETS[0], {**SUBSETS[1], "default": True}), "de/train.csv": 1}, NEW)
    assert inside(find(revision=NEW)) == ["de/train.csv"]


LAYOUTS = {
    "one file": ["talk.jsonl"],
    "names": ["train.csv", "test.csv", "validation.csv"],
    "names with words": ["my_train_words.json.gz", "my-test.json.gz"],
    "folders": ["data/train/b.jsonl", "data/train/a.jsonl", "data/test/c.jsonl"],
    "shards": [*SHARDS, "data/odd-00000-of-00001.parquet"],
    "mostly JSON": ["a.jsonl", "b.jsonl", "c.csv"],
    "hidden": ["train.jsonl", ".cache/train.jsonl", "__old__/train.jsonl", "config.json"],
    "brackets": ["words[1].jsonl"],
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_file_names_decide_without_a_card_as_in_datasets(hub, layout, tmp_path):
    from datasets import load_dataset_builder

    hub.holds(dict.fromkeys(LAYOUTS[layout]))
    for file in LAYOUTS[layout]:
        (tmp_path / "local" / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "local" / file).write_text('{"n": 1}\n')
    local = load_dataset_builder(str(tmp_path / "local"), cache_dir=str(tmp_path / "datasets"))
    for split, files in local.config.data_files.items():
        assert inside(find(str(split))) == [Path(file).relative_to(tmp_path / "local").as_posix() for file in files]
    with pytest.raises(DataError, match=r"Its splits: " + ", ".join(map(str, local.config.data_files))):
        find("nothing")


def test_a_file_that_two_patterns_match_is_read_once(hub):
    hub.holds({"train-train.jsonl": 1})
    assert inside(find()) == ["train-train.jsonl"]


def test_ignores_the_same_data_in_another_format_with_a_message(hub, messages):
    hub.holds({"talk.json": 1, "talk.parquet": 1, "NOTES.md": 1, "MORE.md": 1, "eval/run.py": 1})
    assert inside(find()) == ["talk.parquet"]
    assert messages[0] == "Ignored files of friend/talk, of another kind than talk.parquet: talk.json"


def test_uses_the_newest_commit_of_a_branch_and_keeps_a_pinned_commit(hub):
    hub.holds({"train.jsonl": b"old\n"})
    hub.holds({"train.jsonl": b"newer\n"}, NEW)
    assert find().paths[0].read_bytes() == b"old\n"
    hub.branches = {"main": NEW, "v1": OLD, "refs/convert/parquet": OLD}
    assert find().paths[0].read_bytes() == b"newer\n"
    assert find(revision="v1").commit == find(revision="refs/convert/parquet").commit == OLD
    pinned = find(revision=OLD)
    hub.asked.clear()
    assert find(revision=OLD) == pinned
    assert hub.asked == []


@pytest.mark.parametrize("way", ["HF_HUB_OFFLINE", "down"])
def test_uses_the_last_download_without_a_network(hub, way, monkeypatch, messages):
    hub.holds(SHARDS)
    first, pinned = find(), find(revision=OLD)
    if way == "down":
        hub.down = True
    else:
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    messages.clear()
    assert find() == first
    assert messages == [f"The hub cannot be reached: using friend/talk as last downloaded, commit {OLD}"]
    assert find(revision=OLD) == pinned
    assert len(messages) == 1
    with pytest.raises(UnavailableError, match="incomplete on this machine and the hub cannot be reached"):
        find("test")
    first.paths[1].unlink()
    with pytest.raises(UnavailableError, match="incomplete on this machine"):
        find()


def count_downloaded(home):
    """Count the files in folders `data` of snapshots; folders may vanish at the same time."""
    return sum(len(files) for folder, _, files in os.walk(home) if "snapshots" in folder and folder.endswith("data"))


def test_resumes_a_killed_download_and_never_takes_it_as_complete(hub, server, tmp_path):
    hub.holds(SHARDS)
    last = list(SHARDS)[2]
    hub.halves = {Path(last).name}
    code = "from lora_chat.data.reading.hub_dataset import *; find_hub_files('friend/talk', 'train', None, None)"
    there = {"HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}", "HF_HOME": str(tmp_path / "home")}
    environment = os.environ | there | {"HF_HUB_DISABLE_XET": "1"}
    with subprocess.Popen([sys.executable, "-c", code], env=environment, stderr=subprocess.PIPE) as process:
        assert hub.half_sent.wait(60)
        while count_downloaded(tmp_path / "home") < 2 and process.poll() is None:
            threading.Event().wait(0.01)
        process.kill()
    hub.halves, hub.down = set(), True
    with pytest.raises(UnavailableError, match="incomplete on this machine"):
        find()
    hub.down = False
    hub.asked.clear()
    assert [path.read_bytes() for path in find().paths] == list(SHARDS.values())
    assert downloaded(hub) == [last]


def test_failing_hub_leaves_the_last_downloaded_commit(hub, messages):
    hub.holds({"train.jsonl": 1})
    hub.holds({"train-1.jsonl": 1, "train-2.jsonl": 1}, NEW)
    known = find()
    hub.branches = {"main": NEW}
    hub.refused = {"train-2.jsonl": (520, "")}
    messages.clear()
    assert find() == known
    assert messages[1:] == [f"The hub cannot be reached: using friend/talk as last downloaded, commit {OLD}"]
    with pytest.raises(UnavailableError, match="cannot be reached"):
        find(revision=NEW)
    hub.refused = {}
    assert inside(find()) == ["train-1.jsonl", "train-2.jsonl"]


@pytest.mark.parametrize("file", ["train.zip", "train.jsonl.zst", "train.arrow", "train.tar.gz", "train.parquet.gz"])
def test_refuses_unsupported_files_before_downloading(hub, file):
    hub.holds({file: 1, "train.jsonl": 1})
    with pytest.raises(DataError, match=rf"The split train of friend/talk has {file}: archives and \.arrow are not"):
        find()
    assert downloaded(hub) == []


@pytest.mark.parametrize("files", [["talk.py", "raw/train.json"], ["words.py"]])
def test_a_script_is_never_run_and_the_conversion_is_named(hub, files):
    hub.holds(dict.fromkeys(files))
    with pytest.raises(DataError, match=r"generated by a script, which is never run(.|\n)*refs/convert/parquet"):
        find()
    assert downloaded(hub) == []


def test_reads_subsets_and_splits_of_a_parquet_conversion(hub):
    files = ["en/train_sft/0000.parquet", "en/train_gen/0000.parquet", "en/train_gen/0001.parquet"]
    hub.holds(dict.fromkeys([*files, "de/test/0000.parquet", ".gitattributes"]))
    assert inside(find("train_gen", subset="en")) == files[1:]
    with pytest.raises(DataError, match=r"Its splits: train_gen, train_sft"):
        find(subset="en")
    with pytest.raises(DataError, match=r"Its subsets: de, en"):
        find()


@pytest.mark.parametrize("files", [{}, {"README.md": b"# Nothing yet"}, {"a.png": 1, "b.pkl": 1}])
def test_a_repository_without_data_is_refused(hub, files):
    hub.holds(files)
    with pytest.raises(DataError, match=r"The split train of friend/talk has no data files\.\nSupported: \.parquet"):
        find()


@pytest.mark.parametrize(
    ("where", "reason"),
    [
        ("/etc/*.json", "outside the repository"),
        ("../*.json", "outside the repository"),
        ("https://example.org/x.json", "outside the repository"),
        ("zip://*.json::https://example.org/x.zip", "outside the repository"),
        ("gone.jsonl", "missing or not data"),
        ({"train": "train.jsonl"}, "cannot be determined: Expected data_files in YAML"),
    ],
)
def test_refuses_a_card_that_names_files_outside_the_repository(hub, where, reason):
    hub.holds({"train.jsonl": 1, "README.md": card({"config_name": "default", "data_files": where})})
    with pytest.raises(DataError, match=reason):
        find()
    assert downloaded(hub) == ["README.md"]


def test_refuses_a_card_without_valid_yaml(hub):
    hub.holds({"train.jsonl": 1, "README.md": b"---\nconfigs: [\n---\n"})
    with pytest.raises(DataError, match="does not begin with valid YAML"):
        find()


@pytest.mark.parametrize(
    ("name", "revision", "text"),
    [
        ("friend/nothing", None, "The hub has no data set friend/nothing, or it requires a login(.|\n)*HF_TOKEN"),
        ("friend/private", None, "or it requires a login"),
        ("friend/talk", "nowhere", "The data set friend/talk has no revision nowhere"),
        ("a/b/c", None, "a/b/c is not a valid name of a data set"),
    ],
)
def test_names_a_data_set_that_the_hub_does_not_have(hub, name, revision, text):
    hub.holds({"train.jsonl": 1})
    with pytest.raises(UnavailableError, match=text):
        find(name=name, revision=revision)


def test_a_gated_data_set_asks_for_a_token(hub):
    hub.holds({"train.jsonl": 1})
    hub.refused = {"train.jsonl": (403, "GatedRepo")}
    with pytest.raises(UnavailableError, match="accept its terms on its page and set HF_TOKEN"):
        find()


def test_reports_a_full_disk_as_such_and_not_as_a_network_error(hub, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    hub.holds({"train.jsonl": 1})
    monkeypatch.setattr("huggingface_hub.snapshot_download", full)
    with pytest.raises(DiskFullError, match="set HF_HOME"):
        find()
