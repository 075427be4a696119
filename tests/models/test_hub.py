"""A base from the hub is downloaded once, without code or pickles, and pinned to its commit. The hub is a fake."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

pytestmark = (
    pytest.mark.slow
)  # each look at the hub is a separate process, because `huggingface_hub` reads its settings once
COMMIT = "5" * 40
FIND = """
import json, logging, os, sys
environment = json.loads(sys.argv[3])
for name in [name for name in os.environ if name.startswith("HF_") or "proxy" in name.lower()]:
    del os.environ[name]
os.environ.update(environment)
for name in [name for name in sys.modules if name.split(".")[0] == "huggingface_hub"]:
    del sys.modules[name]  # it reads the variables when it is imported
from lora_chat.errors import LoraChatError
from lora_chat.models.base_model import find_base
from lora_chat.config.recipe import BaseSection
notices = []
logger = logging.getLogger("lora_chat")
logger.setLevel(logging.INFO)
handler = logging.Handler()
handler.emit = lambda record: notices.append(record.getMessage())
logger.addHandler(handler)
try:
    base = find_base(BaseSection(name=sys.argv[1], revision=sys.argv[2] or None))
    files = sorted(p.name for p in base.folder.iterdir())
    found = {"files": files, "revision": base.revision, "folder": str(base.folder)}
except LoraChatError as error:
    found = {"error": str(error), "code": error.exit_code}
print(json.dumps(found | {"notices": notices}))
"""


@pytest.fixture(scope="module")
def hub(random_base, warm_workers, tmp_path_factory):
    """A fake hub with the repository friend/tiny, which also has a pickle and code, and the requests that it got."""
    folder = random_base("llama")
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    files |= {"pytorch_model.bin": b"a pickle", "modeling_tiny.py": b"raise SystemExit", "README.md": b"hello"}
    asked = []

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self):
            self.answer(body=False)

        def do_GET(self):
            self.answer(body=True)

        def log_message(self, *args):
            pass

        def answer(self, body):
            path = self.path.split("?")[0]
            asked.append(path)
            headers, content, status = {}, b"{}", 404
            if path.startswith(("/api/models/friend/tiny", "/api/models/friend/pickled")):
                about = {"_id": "1", "id": "friend/tiny", "sha": COMMIT, "private": False, "tags": []}
                names = [n for n in files if "tiny" in path.split("/") or not n.endswith(".safetensors")]
                about |= {"siblings": [{"rfilename": name} for name in names]}
                tree = [{"type": "file", "path": n, "size": len(files[n]), "oid": "0" * 40} for n in names]
                content, status = json.dumps(tree if "/tree/" in path else about).encode(), 200
            elif path.startswith("/friend/") and path.split("/")[-1] in files:
                name = path.split("/")[-1]
                content, status = files[name], 200
                headers = {"ETag": f'"{hash(name) & 0xFFFFFFFF:040x}"', "X-Repo-Commit": COMMIT}
            else:
                headers = {"X-Error-Code": "RepoNotFound"}
            self.send_response(status)
            for key, value in headers.items():
                self.send_header(key, value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if body:
                self.wfile.write(content)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    home = tmp_path_factory.mktemp("hub")
    (home / "find.py").write_text(FIND)

    def find(name, revision="", endpoint=f"http://127.0.0.1:{server.server_port}"):
        asked.clear()
        environment = {"HF_ENDPOINT": endpoint, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1"}
        done = warm_workers.run(home / "find.py", [name, revision, json.dumps(environment)], timeout=120)
        assert done.exit_code == 0, done.stderr
        return json.loads(done.stdout.splitlines()[-1]), list(asked)

    yield find
    server.shutdown()


def test_downloads_a_base_once_without_pickles_or_code(hub):
    found, asked = hub("friend/tiny")
    assert found["revision"] == COMMIT
    assert found["notices"] == ["Downloading friend/tiny from the hub"]
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= set(found["files"])
    assert not any(name.endswith((".bin", ".py")) for name in found["files"])
    assert not any(path.endswith((".bin", ".py")) for path in asked)
    second, asked = hub("friend/tiny")
    assert second["files"] == found["files"]
    assert second["revision"] == COMMIT
    assert asked == []


def test_finds_a_downloaded_base_without_a_network(hub):
    hub("friend/tiny", COMMIT)
    found, _ = hub("friend/tiny", COMMIT, endpoint="http://127.0.0.1:9")
    assert found["revision"] == COMMIT


def test_continues_an_interrupted_download(hub):
    found, _ = hub("friend/tiny")
    (Path(found["folder"]) / "model.safetensors").unlink()
    second, asked = hub("friend/tiny")
    assert second["files"] == found["files"]
    assert any(path.endswith("model.safetensors") for path in asked)


def test_refuses_a_repository_with_only_pickles(hub):
    found, asked = hub("friend/pickled")
    assert found["code"] == 8
    assert "lacks config.json or weights in safetensors" in found["error"]
    assert not any(path.endswith(".bin") for path in asked)


def test_names_an_unknown_repository(hub):
    found, _ = hub("friend/nothing")
    assert found["code"] == 8
    assert "The hub has no model friend/nothing" in found["error"]


def test_explains_the_fix_without_a_network_and_a_copy(hub):
    found, _ = hub("friend/other", endpoint="http://127.0.0.1:9")
    assert found["code"] == 8
    assert "cannot be reached" in found["error"]
