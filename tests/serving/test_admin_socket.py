"""The admin socket: only its owner connects, one server has it, a dead server's socket is replaced, nothing else is."""

import argparse
import json
import os
import socket
import stat
from types import SimpleNamespace

import pytest

from lora_chat.commands.serve_admin import add_run_time_options, run_admin_client
from lora_chat.errors import IntegrityError, InUseError, LoraChatError, UnavailableError, UsageError
from lora_chat.inference.continuous.request import BatchStatistics
from lora_chat.pipeline.admitted_model import AdmissionCheck, AdmittedModel
from lora_chat.pipeline.open_adapter import TrustOptions
from lora_chat.serving import admin_socket
from lora_chat.serving.admin_socket import AdminListener, AdminServer, ask_admin


class FakeModels:
    def __init__(self):
        self.refused = {"bad": "it is damaged"}
        self.asked = []
        self.generator = SimpleNamespace(is_alive=True, statistics=BatchStatistics)
        check = AdmissionCheck("files", None, "unknown\x1b[31m")
        self.models = [AdmittedModel("one", "served_1", None, (), None, None, (check,), "runs/one", 0)]

    def list(self):
        return self.models

    def admit(self, source, trust):
        self.asked.append((source, trust))
        if "wrong" in source:
            raise IntegrityError("the base is another one")
        if "bug" in source:
            raise RuntimeError("secret detail")
        return self.models[0]

    def dismiss(self, name):
        if name != "one":
            raise UsageError(f"No adapter is loaded under the name {name}.")


@pytest.fixture
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("s")
    path.chmod(0o700)
    return path


@pytest.fixture
def served(folder):
    models = FakeModels()
    listener = AdminListener(folder / "a.sock")
    AdminServer(listener, models, TrustOptions()).start()
    yield SimpleNamespace(path=folder / "a.sock", models=models, listener=listener)
    listener.close()


def exchange(path, raw):
    """Send bytes and return the lines of the answer."""
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(10)
        client.connect(str(path))
        client.sendall(raw)
        client.shutdown(socket.SHUT_WR)
        with client.makefile("rb") as stream:
            return [json.loads(line) for line in stream]


def test_only_the_owner_may_connect(served, monkeypatch):
    mode = os.lstat(served.path).st_mode
    assert stat.S_ISSOCK(mode)
    assert stat.S_IMODE(mode) == 0o600
    monkeypatch.setattr(os, "geteuid", lambda: 12345)  # the server seems to belong to another user
    monkeypatch.setattr(admin_socket.struct, "unpack", lambda *_: (1, 777, 1))
    with pytest.raises((UnavailableError, OSError)):
        ask_admin(served.path, {"command": "list"})


def test_is_private_whatever_the_umask_is(folder):
    before = os.umask(0)
    try:
        listener = AdminListener(folder / "open.sock")
    finally:
        os.umask(before)
    assert stat.S_IMODE(os.lstat(listener.path).st_mode) == 0o600
    listener.close()


def test_answers_commands(served):
    answer = ask_admin(served.path, {"command": "list"})
    assert answer["ok"] is True
    assert [model["name"] for model in answer["models"]] == ["one"]
    assert answer["refused"] == {"bad": "it is damaged"}
    status = ask_admin(served.path, {"command": "status"})
    assert (status["alive"], status["models"], status["generator"]["running"]) == (True, ["one"], 0)
    assert ask_admin(served.path, {"command": "load", "thing": "/x/run", "name": "two"})["ok"]
    assert ask_admin(served.path, {"command": "load", "thing": "run", "accept_template": True})["ok"]
    assert served.models.asked == [
        ("two=/x/run", TrustOptions()),
        ("run", TrustOptions(accept_template=True)),
    ]
    assert ask_admin(served.path, {"command": "unload", "name": "one"}) == {"ok": True, "unloaded": "one"}


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"hello", "not valid JSON"),
        (b"\xff\xfe", "request"),
        (b"[1]", "one JSON object"),
        (b"{}", "no command None"),
        (b'{"command": "quit"}', "no command quit"),
        (b'{"command": ["list"]}', "no command"),
        (b'{"command": "list", "command": "list"}', "twice"),
        (b'{"command": "list", "more": 1}', "Unknown field more"),
        (b'{"command": "load"}', "field thing"),
        (b'{"command": "load", "thing": ""}', "field thing"),
        (b'{"command": "load", "thing": 7}', "field thing"),
        (b'{"command": "load", "thing": "a\\u0000b"}', "field thing"),
        (b'{"command": "load", "thing": "a", "name": 7}', "field name"),
        (b'{"command": "load", "thing": "a", "accept_template": 1}', "true or false"),
        (b'{"command": "load", "thing": "' + b"x" * 5000 + b'"}', "field thing"),
        (b'{"command": "load", "thing": "wrong"}', "the base is another one"),
        (b'{"command": "unload", "name": "two"}', "No adapter is loaded"),
        (b"[" * 60_000, "request"),
        (b"x" * 70_000, "longer than"),
    ],
)
def test_explains_wrong_requests_and_answers_the_next(served, line, reason):
    answers = exchange(served.path, line + b"\n")
    assert (answers[0]["ok"], reason in answers[0]["error"]) == (False, True)
    assert ask_admin(served.path, {"command": "status"})["ok"]


def test_answers_several_lines_and_hides_the_text_of_faults(served, messages):
    lines = [b'{"command": "status"}', b'{"command": "load", "thing": "bug"}', b'{"command": "list"}']
    answers = exchange(served.path, b"\n".join(lines))
    assert [answer["ok"] for answer in answers] == [True, False, True]
    assert answers[1]["error"] == "internal error (RuntimeError)"


def test_limits_its_connections(served):
    held = []
    for _ in range(admin_socket._MAX_CONNECTIONS):
        client = socket.socket(socket.AF_UNIX)
        client.connect(str(served.path))
        client.sendall(b'{"command": "status"}\n')
        assert client.recv(10)
        held.append(client)
    with pytest.raises(UnavailableError):
        ask_admin(served.path, {"command": "status"})
    for client in held:
        client.close()
    for _ in range(50):
        try:
            assert ask_admin(served.path, {"command": "status"})["ok"]
            return
        except UnavailableError:
            continue
    pytest.fail("connections were not released")


def test_a_second_server_is_refused_and_the_first_answers(served):
    with pytest.raises(InUseError, match="Another server"):
        AdminListener(served.path)
    assert ask_admin(served.path, {"command": "status"})["ok"]


def test_a_server_without_the_lock_is_recognised_by_its_answer(folder):
    with socket.socket(socket.AF_UNIX) as foreign:
        foreign.bind(str(folder / "a.sock"))
        foreign.listen()
        with pytest.raises(InUseError, match="Another server answers"):
            AdminListener(folder / "a.sock")
    assert (folder / "a.sock").exists()


def test_replaces_the_socket_of_a_dead_server_and_deletes_its_own(folder):
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(folder / "a.sock"))
    listener = AdminListener(folder / "a.sock")
    listener.close()
    assert not (folder / "a.sock").exists()
    again = AdminListener(folder / "a.sock")
    (folder / "a.sock").unlink()
    (folder / "a.sock").write_text("another file")
    again.close()
    assert (folder / "a.sock").read_text() == "another file"


@pytest.mark.parametrize("kind", ["file", "link", "dangling", "folder", "fifo"])
def test_never_deletes_or_follows_anything_else(folder, kind):
    path, target = folder / "a.sock", folder / "target"
    if kind == "file":
        path.write_text("data")
    elif kind == "link":
        with socket.socket(socket.AF_UNIX) as dead:
            dead.bind(str(target))
        path.symlink_to(target)
    elif kind == "dangling":
        path.symlink_to(folder / "none")
    elif kind == "folder":
        path.mkdir()
    else:
        os.mkfifo(path)
    with pytest.raises(UsageError, match="not deleted"):
        AdminListener(path)
    assert os.path.lexists(path)
    assert not (folder / "none").exists()


def test_refuses_folders_where_others_could_replace_it(folder):
    folder.chmod(0o777)
    with pytest.raises(UsageError, match="other users can replace"):
        AdminListener(folder / "a.sock")
    folder.chmod(0o770)
    with pytest.raises(UsageError, match="other users can replace"):
        AdminListener(folder / "a.sock")
    folder.chmod(0o1777)
    AdminListener(folder / "a.sock").close()
    with pytest.raises(UsageError, match="not a folder"):
        AdminListener(folder / "none" / "a.sock")
    with pytest.raises(UsageError, match="shorter path"):
        AdminListener(folder / ("x" * 120))
    (folder / "b.sock.lock").symlink_to(folder / "elsewhere")
    with pytest.raises(UsageError, match="cannot be used"):
        AdminListener(folder / "b.sock")


def read_options(*arguments):
    parser = argparse.ArgumentParser()
    parser.add_argument("things", nargs="*")
    parser.add_argument("--accept-template", action="store_true")
    parser.add_argument("--json", action="store_true")
    add_run_time_options(parser)
    return parser.parse_args([str(argument) for argument in arguments])


def test_the_command_line_is_a_client(served, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run").mkdir()
    assert run_admin_client(read_options("--admin", served.path, "--load", "two=run")) is True
    assert served.models.asked[0][0] == f"two={tmp_path / 'run'}"
    assert run_admin_client(read_options("--admin", served.path, "--list")) is True
    out = capsys.readouterr().out
    assert "not checked files      unknown\\x1b[31m" in out
    assert "bad is refused: it is damaged" in out
    assert run_admin_client(read_options("--admin", served.path, "--unload", "one", "--json")) is True
    assert json.loads(capsys.readouterr().out) == {"ok": True, "unloaded": "one"}
    with pytest.raises(LoraChatError, match="the base is another one") as caught:
        run_admin_client(read_options("--admin", served.path, "--load", "wrong"))
    assert caught.value.exit_code == 7


def test_the_client_explains_wrong_options(folder):
    assert run_admin_client(read_options("runs/x", "--admin", folder / "a.sock")) is False
    with pytest.raises(UsageError, match="need --admin"):
        run_admin_client(read_options("--list"))
    with pytest.raises(UsageError, match="running server"):
        run_admin_client(read_options("runs/x", "--admin", folder / "a.sock", "--list"))
    with pytest.raises(UnavailableError, match="No server answers"):
        run_admin_client(read_options("--admin", folder / "a.sock", "--list"))
