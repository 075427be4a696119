"""Push and pull against a local server with the HTTP API of the hub; the client is the real one."""

import base64
import hashlib
import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from forging import raw_of

pytestmark = pytest.mark.slow  # each command runs in a process of its own
COMMIT, TOKEN = "6" * 40, "hf_CanaryCanaryCanary"
REPOSITORY = "friend/kiln"

# Runs each line of its input as a command in a fork, which imports the client of the hub with its own environment.
DRIVER = """
import json, os, sys
import lora_chat.pipeline.publish
from lora_chat.cli import main
assert "huggingface_hub" not in sys.modules
for line in sys.stdin:
    words, environment, output = json.loads(line)
    child = os.fork()
    if not child:
        os.environ.clear()
        os.environ.update(environment)
        for number, name in ((1, "stdout"), (2, "stderr")):
            os.dup2(os.open(f"{output}/{name}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
        code = main(words)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


class Hub:
    """A server with one repository, a dict of files; it records the requests."""

    def __init__(self):
        self.files, self.asked, self.sizes, self.blobs = {}, [], {}, {}
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def do_HEAD(self):
                hub.answer(self, b"")

            def do_GET(self):
                hub.answer(self, b"")

            def do_POST(self):
                hub.answer(self, self.rfile.read(int(self.headers.get("Content-Length") or 0)))

            do_PUT = do_POST

            def log_message(self, *args):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.endpoint = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def answer(self, request, body):
        path = request.path.split("?")[0]
        self.asked.append((request.command, path))
        writes = request.command in ("POST", "PUT") and "validate-yaml" not in path and not path.startswith("/blob/")
        if writes and request.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self.send(request, 401, b"{}")
        if path == "/api/repos/create":
            return self.reply(request, {"url": f"{self.endpoint}/{REPOSITORY}", "name": REPOSITORY})
        if path == "/api/validate-yaml":
            return self.reply(request, {"errors": [], "warnings": []})
        if path.startswith(f"/api/models/{REPOSITORY}/preupload/"):
            names = [file["path"] for file in json.loads(body)["files"]]
            kinds = {True: "lfs", False: "regular"}
            files = [
                {"path": name, "uploadMode": kinds[name.endswith(".safetensors")], "shouldIgnore": False}
                for name in names
            ]
            return self.reply(request, {"files": files})
        if path == f"/{REPOSITORY}.git/info/lfs/objects/batch":
            objects = [
                {**item, "actions": {"upload": {"href": f"{self.endpoint}/blob/{item['oid']}"}}}
                for item in json.loads(body)["objects"]
            ]
            return self.reply(request, {"transfer": "basic", "objects": objects})
        if path.startswith("/blob/"):
            self.blobs[path.split("/")[-1]] = body
            return self.send(request, 200, b"")
        if path.startswith(f"/api/models/{REPOSITORY}/commit/"):
            return self.commit(request, body)
        if path.startswith(f"/api/models/{REPOSITORY}"):
            tree = [{"type": "file", "path": n, "size": len(f), "oid": "0" * 40} for n, f in self.files.items()]
            about = {"_id": "1", "id": REPOSITORY, "sha": COMMIT, "private": False, "tags": []}
            about["siblings"] = [{"rfilename": name} for name in self.files]
            return self.reply(request, tree if "/tree/" in path else about)
        name = path.split("/")[-1]
        if path.startswith(f"/{REPOSITORY}/resolve/") and name in self.files:
            content = self.files[name]
            tag = {"ETag": f'"{hashlib.sha256(content).hexdigest()[:40]}"', "X-Repo-Commit": COMMIT}
            return self.send(request, 200, content, tag, self.sizes.get(name))
        return self.send(request, 404, b"{}", {"X-Error-Code": "RepoNotFound"})

    def commit(self, request, body):
        for line in body.splitlines():
            operation = json.loads(line)
            value = operation["value"]
            if operation["key"] == "file":
                self.files[value["path"]] = base64.b64decode(value["content"])
            elif operation["key"] == "lfsFile":
                self.files[value["path"]] = self.blobs[value["oid"]]
                assert hashlib.sha256(self.blobs[value["oid"]]).hexdigest() == value["oid"]
            elif operation["key"] == "deletedFile":
                del self.files[value["path"]]
        url = f"{self.endpoint}/{REPOSITORY}/commit/{COMMIT}"
        return self.reply(request, {"success": True, "commitOid": COMMIT, "commitUrl": url})

    def reply(self, request, value):
        return self.send(request, 200, json.dumps(value).encode())

    def send(self, request, status, content, headers=(), size=None):
        request.send_response(status)
        for key, value in dict(headers).items():
            request.send_header(key, value)
        request.send_header("Content-Type", "application/json")
        request.send_header("Content-Length", str(size or len(content)))
        request.end_headers()
        if request.command != "HEAD":
            request.wfile.write(content)


@pytest.fixture
def hub(tmp_path):
    server = Hub()
    yield server
    server.server.shutdown()


@pytest.fixture(scope="module")
def driver():
    """Return a process that runs commands in forks, so that the libraries are imported once."""
    with subprocess.Popen(
        [sys.executable, "-c", DRIVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as it:
        yield it


@pytest.fixture
def call(hub, tmp_path, driver):
    def call(*words, token=None, new=False):
        environment = {k: v for k, v in os.environ.items() if not k.startswith("HF_") and "proxy" not in k.lower()}
        environment |= {"HF_ENDPOINT": hub.endpoint, "HF_HOME": str(tmp_path / "hf")}
        environment |= {"HF_TOKEN": token} if token else {}
        words = list(map(str, words))
        if new:
            command = [sys.executable, "-m", "lora_chat", *words]
            done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
        else:
            driver.stdin.write(json.dumps([words, environment, str(tmp_path)]) + "\n")
            driver.stdin.flush()
            code = int(driver.stdout.readline())
            done = subprocess.CompletedProcess(
                words, code, *((tmp_path / name).read_text() for name in ("stdout", "stderr"))
            )
        assert "Traceback" not in done.stderr, done.stderr
        assert TOKEN not in done.stdout + done.stderr
        return done

    return call


def test_pull_gives_the_pushed_parcel(hub, call, members, write, tmp_path):
    path = write(members)
    hub.files["model.sig"] = b"of an older parcel"
    done = call("push", path, REPOSITORY, "--json", token=TOKEN)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["commit"] == COMMIT
    assert hub.files == members  # PEFT's names, the card as README.md, and nothing else

    hub.files |= {"adapter_model.bin": b"a pickle", "chat.py": b"raise SystemExit"}
    hub.asked.clear()
    done = call("pull", REPOSITORY, "--out", tmp_path / "pulled.lorachat", "--json", new=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "pulled.lorachat").read_bytes() == path.read_bytes()
    assert not [path for _, path in hub.asked if path.endswith((".bin", ".py"))]


def test_push_without_a_token_explains_how_to_log_in(hub, call, members, write):
    done = call("push", write(members), REPOSITORY)
    assert done.returncode == 8
    assert "HF_TOKEN" in done.stderr
    assert hub.files == {}


@pytest.mark.parametrize(
    ("change", "code", "message"),
    [
        (
            lambda hub: hub.files.update({"README.md": b"changed"}),
            7,
            "README.md has another size or sha256 than in the receipt",
        ),
        (lambda hub: hub.files.pop("receipt.json"), 7, "has no receipt.json"),
        (lambda hub: hub.sizes.update({"README.md": 2**40}), 7, "are allowed"),
        (lambda hub: hub.files.update({"model.sig": b"{}"}), 7, "the receipt names no signer"),
        (lambda hub: hub.server.shutdown() or hub.server.server_close(), 8, "cannot be reached"),
    ],
)
def test_keeps_no_file_that_fails_a_check(hub, call, members, tmp_path, change, code, message):
    hub.files = dict(members)
    change(hub)
    done = call("pull", REPOSITORY, "--out", tmp_path / "x.lorachat")
    assert (done.returncode, message in done.stderr) == (code, True), done.stderr
    assert not list(tmp_path.glob("*.lorachat*")) and not list(tmp_path.glob(".x*"))


def test_pull_does_not_replace_another_file(hub, call, members, tmp_path):
    hub.files = dict(members)
    (tmp_path / "x.lorachat").write_bytes(raw_of(members)[:-1])
    done = call("pull", REPOSITORY, "--out", tmp_path / "x.lorachat")
    assert done.returncode == 2
    assert "Another file exists already" in done.stderr
