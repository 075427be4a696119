"""Data sets and parcels use the same checked hub client as bases."""

import json
import time

import pytest
from hub_stand_in import COMMIT, NAME, StandIn

from lora_chat.data.reading.hub_dataset import find_hub_files
from lora_chat.errors import LoraChatError
from lora_chat.sharing.container import MAX_MEMBER_BYTES, REQUIRED_MEMBERS
from lora_chat.sharing.hub import download, upload
from tests.pipeline.hub_adapter import serve

TOKEN = "hf_CanaryCanaryCanary"
UP = "../" * 12
LAUGHS = "a0: &a0 [ha, ha]\n" + "".join(f"a{n + 1}: &a{n + 1} [{', '.join([f'*a{n}'] * 9)}]\n" for n in range(9))


@pytest.fixture
def hub(tmp_path, monkeypatch):
    files = {"train.jsonl": b'{"n": 1}\n', "README.md": b"---\nlicense: mit\n---\n"}
    for stand_in in serve(files, tmp_path, monkeypatch):
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield stand_in


def refused(action, match, code, tmp_path):
    with pytest.raises(LoraChatError) as caught:
        action()
    said = str(caught.value)
    assert caught.value.exit_code == code and match in said, said
    assert TOKEN not in said and said.count("\n") <= 1
    allowed = ("own/lora-chat/", "cache/hub/")
    files = [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if not path.is_dir()]
    assert all(file.startswith(allowed) for file in files), files


def dataset():
    return find_hub_files(NAME, "train", None, None)


def test_downloads_honest_data_set(hub):
    assert [path.read_bytes() for path in dataset().paths] == [b'{"n": 1}\n']


DATA = {
    "an ETag that climbs": (lambda hub: hub.headers.update({"train.jsonl": {"ETag": f'"{UP}x"'}}), "its ETag is", 8),
    "a commit that climbs": (lambda hub: setattr(hub, "sha", f"{UP}x"), "its commit is", 8),
    "another commit": (lambda hub: hub.headers.update({"README.md": {"X-Repo-Commit": "6" * 40}}), "its commit is", 8),
    "a file that climbs": (lambda hub: hub.files.update({f"{UP}train.jsonl": b"x"}), "it names a file", 8),
    "a body too long": (lambda hub: hub.bodies.update({"train.jsonl": lambda: [b"x" * 99]}), "9 are allowed", 7),
    "a card with aliases": (lambda hub: hub.files.update({"README.md": f"---\n{LAUGHS}---\n".encode()}), "aliases", 3),
    "a deep card": (lambda hub: hub.files.update({"README.md": b"---\nx: " + b"[" * 99_999 + b"\n---\n"}), "deep", 3),
    "a huge card": (lambda hub: hub.files.update({"README.md": b" " * 8_000_001}), "the limit is 8,000,000", 3),
    "a card with a tag": (lambda hub: hub.files.update({"README.md": b"---\nx: !!python/name:os.x\n---\n"}), "YAML", 3),
}  # fmt: skip


@pytest.mark.parametrize("kind", DATA)
def test_refuses_hostile_data_set(hub, kind, tmp_path):
    spoil, match, code = DATA[kind]
    spoil(hub)
    refused(dataset, match, code, tmp_path)


PATTERNS = [["**/" * 9 + "x.jsonl"], ["*-" * 6 + "x.jsonl"], ["**/*a*/**/*.jsonl"] * 9_000, ["x.jsonl"] * 200_000]


@pytest.mark.parametrize("patterns", PATTERNS, ids=lambda patterns: f"{len(patterns)} {patterns[0]}")
def test_patterns_of_a_card_are_matched_quickly(hub, patterns, tmp_path):
    hub.files = {"-/" * 60 + "-" * 200 + f"{n}.jsonl": b"1" for n in range(9)}
    config = {"config_name": "default", "data_files": [{"split": "train", "path": patterns}]}
    body = f"---\nconfigs: {json.dumps([config])}\n---\n"
    hub.files["README.md"] = body.encode()
    begun = time.process_time()
    with pytest.raises(LoraChatError, match=r"would take minutes to match|characters; .* are allowed"):
        dataset()
    assert time.process_time() - begun < 10


@pytest.mark.parametrize("note", ["../../x", "6" * 39, None, 7])
def test_ignores_damaged_cached_commit(hub, note, tmp_path):
    found = dataset()
    for path in (tmp_path / "own").rglob("*.json"):
        path.write_text(json.dumps({**json.loads(path.read_text()), "commit": note}))
    assert dataset() == found


@pytest.fixture
def parcel(hub):
    hub.files = {name: b"content of " + name.encode() for name in REQUIRED_MEMBERS}
    return hub


def pull():
    return download(NAME, None)


def test_pulls_honest_parcel(parcel):
    assert pull() == (parcel.files, COMMIT)


PARCELS = {
    "an ETag that climbs": (
        lambda hub: hub.headers.update({REQUIRED_MEMBERS[0]: {"ETag": f'"{UP}x"'}}),
        "its ETag is",
        8,
    ),
    "another commit": (
        lambda hub: hub.headers.update({REQUIRED_MEMBERS[1]: {"X-Repo-Commit": "6" * 40}}),
        "its commit is",
        8,
    ),
    "a name that climbs": (lambda hub: hub.files.update({f"{UP}x": b"x"}), "it names a file", 8),
    "an endless body": (
        lambda hub: hub.bodies.update({REQUIRED_MEMBERS[1]: lambda: [b"x" * 100_000] * 10}),
        f"{MAX_MEMBER_BYTES[REQUIRED_MEMBERS[1]]:,} are allowed",
        7,
    ),
    "a redirect to a service of this machine": (
        lambda hub: hub.redirects.update(
            {f"/{NAME}/resolve/{COMMIT}/{REQUIRED_MEMBERS[0]}": "https://169.254.169.254/x"}
        ),
        "it leads to https://169.254.169.254",
        8,
    ),
}


@pytest.mark.parametrize("kind", PARCELS)
def test_refuses_hostile_parcel(parcel, kind, tmp_path):
    spoil, match, code = PARCELS[kind]
    spoil(parcel)
    refused(pull, match, code, tmp_path)


class Receiver(StandIn):
    """A hub that accepts uploads and asks to verify them at an address of its choice."""

    def __init__(self, elsewhere):
        super().__init__()
        self.elsewhere, self.commit_id = elsewhere, COMMIT

    def answer(self, request):
        path = request.path.partition("?")[0]
        body = request.rfile.read(int(request.headers.get("Content-Length") or 0))
        if request.command not in ("POST", "PUT"):
            return super().answer(request)
        self.asked.append((request.command, path, request.headers.get("Authorization")))
        value = {}
        if path == "/api/repos/create":
            value = {"url": f"{self.endpoint}/{NAME}", "name": NAME}
        elif "/preupload/" in path:
            names = [file["path"] for file in json.loads(body)["files"]]
            value = {"files": [{"path": name, "uploadMode": "lfs", "shouldIgnore": False} for name in names]}
        elif path.endswith("/info/lfs/objects/batch"):
            actions = {kind: {"href": f"{self.elsewhere.endpoint}/{kind}"} for kind in ("upload", "verify")}
            objects = [{**one, "actions": actions} for one in json.loads(body)["objects"]]
            value = {"transfer": "basic", "objects": objects}
        elif "/commit/" in path:
            value = {"success": True, "commitOid": self.commit_id, "commitUrl": f"{self.endpoint}/{NAME}/commit/x"}
        content = json.dumps(value).encode()
        request.send_response(200)
        request.send_header("Content-Length", str(len(content)))
        request.end_headers()
        request.wfile.write(content)
        return None


@pytest.fixture
def receiver(hub, monkeypatch):
    from huggingface_hub import constants

    elsewhere = Receiver(None)
    found = Receiver(elsewhere)
    monkeypatch.setattr(constants, "ENDPOINT", found.endpoint)
    yield found
    for one in (found, elsewhere):
        one.server.shutdown()


def push():
    return upload({"adapter_model.safetensors": b"weights"}, NAME, private=False)


def test_upload_sends_the_token_only_to_the_endpoint(receiver):
    assert push() == COMMIT
    assert {token for _, path, token in receiver.asked if NAME in path} == {f"Bearer {TOKEN}"}
    assert [(method, path, token) for method, path, token in receiver.elsewhere.asked] == [
        ("PUT", "/upload", None),
        ("POST", "/verify", None),
    ]


@pytest.mark.parametrize(
    "address", ["http://169.254.169.254", "file:///etc", "https://localhost", "http://evil.example"]
)
def test_refuses_upload_to_another_host(receiver, address, tmp_path):
    receiver.elsewhere.endpoint = address
    refused(push, "The hub's response is refused: it", 8, tmp_path)


@pytest.mark.parametrize("commit", ["\x1b[2J", "../x", "6" * 39, None])
def test_refuses_invalid_commit_of_an_upload(receiver, commit, tmp_path):
    receiver.commit_id = commit
    refused(push, "its commit is", 8, tmp_path)
