"""Workers are isolated, get no secrets, and end together with their forks."""

import json
import os
import signal
import site
import subprocess
import sys
import time
from pathlib import Path
from threading import Thread

import pytest

from lora_chat.system import worker
from lora_chat.system.environment import is_secret, make_search_paths_absolute
from lora_chat.system.worker import pool_context, run_worker, start_worker, wait_for_worker, worker_timeout_seconds

SECRETS = {
    "HF_TOKEN": "x",
    "HUGGING_FACE_HUB_TOKEN": "x",
    "OPENAI_API_KEY": "x",
    "WANDB_API_KEY": "x",
    "MY_KEY": "x",
    "key_2": "x",
    "DB_PASSWORD": "x",
    "PGPASSWORD": "x",
    "MYSQL_PWD": "x",
    "GITHUB_PAT": "x",
    "client_secret": "x",
    "AWS_ACCESS_KEY_ID": "x",
    "AWS_PROFILE": "x",
    "GOOGLE_APPLICATION_CREDENTIALS": "/x.json",
    "SSH_AUTH_SOCK": "/x",
    "DOCKER_AUTH_CONFIG": "{}",
    "PIP_INDEX_URL": "https://user:pass@index.example/simple",
    "HTTPS_PROXY": "http://user:pass@proxy.example:8080",
    "DATABASE_URL": "postgres://me:pw@db.example/x",
    "HARMLESS_NAME": "hf_abcdefghijklmnopqrstuvwxyz",
    "OTHER_NAME": "ghp_abcdefghijklmnopqrstuvwxyz012345",
    "GHTOKEN_RO": "x",
    "hfTokenOfMine": "x",
    "MASTERKEY": "x",
    "SSHKEY2": "x",
    "OAUTH_CLIENT": "x",
    "NPM_CONFIG__AUTH": "x",
    "MY_JWT": "x",
    "BEARER": "x",
    "GIT_CREDS": "x",
    "SENTRY_DSN": "x",
    "STORAGE_CONNECTION_STRING": "x",
    "DB_PW": "x",
    "BLOB_SAS": "x",
    "HTTP_HEADERS": "Authorization: Bearer abcdefghijkl",
    "ODBC": "Driver=x;Password=y;Server=z",
    "SETTINGS": '{"api_key": "y"}',
    "STORAGE": "AccountName=x;AccountKey=eA==",
    "ODD": "npm_abcdefghijklmnopqrstuvwxyz",
    "PLAIN": "9f86d081884c7d659a2feaa0c55ad015",
    "AGE": "AGE-SECRET-KEY-1QQ",
}
HARMLESS = {
    "TOKENIZERS_PARALLELISM": "false",
    "OMP_NUM_THREADS": "1",
    "CUDA_VISIBLE_DEVICES": "0",
    "HF_HOME": "/x",
    "KEYBOARD": "de",
    "CUDA_HOME": "/usr/local/cuda-12.4",
    "LD_LIBRARY_PATH": "/usr/lib/x86_64-linux-gnu",
    "NVIDIA_VISIBLE_DEVICES": "GPU-3f4c1d2e-aaaa-bbbb-cccc-1234567890ab",
    "TERM": "xterm-256color",
    "SLURM_JOB_ID": "123456",
    "AUTHOR": "x",
    "http_proxy": "http://proxy.example:8080",
    "LANG": "C.UTF-8",
}


@pytest.fixture
def run(tmp_path):
    """Run a script in a worker and return the JSON that it prints."""

    def call(source, *arguments, **options):
        script = tmp_path / "code" / "script.py"
        script.parent.mkdir(exist_ok=True)
        script.write_text(source)
        done = run_worker(script, arguments, timeout=60, **options)
        assert done.exit_code == 0, done.stderr
        return json.loads(done.stdout)

    return call


SHOW = "import json, os, sys; print(json.dumps([sys.argv, sys.path, os.getcwd(), os.listdir(), dict(os.environ)]))"


def test_worker_has_its_own_empty_folder_and_no_search_path_beyond_the_installation(run, tmp_path, monkeypatch):
    trap = tmp_path / "trap"
    trap.mkdir()
    for name in ("json.py", "sitecustomize.py", "usercustomize.py", "resource.py"):
        (trap / name).write_text("raise SystemExit('trapped')")
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "resource.py").write_text("raise SystemExit('trapped')")
    monkeypatch.chdir(trap)
    monkeypatch.setenv("PYTHONPATH", f".{os.pathsep}{os.pathsep}{trap}")
    monkeypatch.setenv("PYTHONSTARTUP", str(trap / "json.py"))
    monkeypatch.setenv("PYTHONHOME", "")
    argv, path, folder, inside, environment = run("import resource\n" + SHOW, "an argument", "ü")
    assert argv[1:] == ["an argument", "ü"]
    assert not any(str(tmp_path) in element for element in path)
    assert Path(folder).name.startswith("lora-chat-") and inside == []
    assert not Path(folder).exists()
    assert environment["TMPDIR"] == folder
    assert environment["HF_HUB_OFFLINE"] == "1"
    assert not any(value.startswith(str(trap)) for name, value in environment.items() if name != "OLDPWD")


@pytest.mark.parametrize("name", SECRETS)
def test_secrets_are_recognised(name):
    assert is_secret(name, SECRETS[name])


@pytest.mark.parametrize("name", HARMLESS)
def test_harmless_settings_are_not_secrets(name):
    assert not is_secret(name, HARMLESS[name])


def test_secrets_do_not_reach_a_worker_and_settings_do(run, monkeypatch):
    for name, value in {**SECRETS, **HARMLESS}.items():
        monkeypatch.setenv(name, value)
    environment = run(SHOW)[-1]
    assert not set(SECRETS) & set(environment)
    assert HARMLESS.items() <= environment.items()
    kept = run(SHOW, passed_variables=("PIP_*", "*_PROXY"))[-1]
    assert set(SECRETS) & set(kept) == {"PIP_INDEX_URL", "HTTPS_PROXY"}


def test_worker_runs_the_package_of_its_parent(tmp_path, monkeypatch):
    copy = tmp_path / "other" / "lora_chat"
    (copy / "system").mkdir(parents=True)
    (copy / "__init__.py").write_text("")
    (copy / "hello.py").write_text("import sys, lora_chat; print(lora_chat.__file__, sys.path)")
    monkeypatch.setattr(worker, "_PACKAGE_FOLDER", copy)
    done = run_worker("lora_chat.hello", timeout=60)
    where, _, path = done.stdout.partition(" ")
    assert Path(where) == copy / "__init__.py"
    assert str(tmp_path) not in path


def test_user_site_is_used_only_if_libraries_are_there(run, tmp_path, monkeypatch):
    (tmp_path / "user").mkdir()
    (tmp_path / "user" / "only_here.py").write_text("")
    monkeypatch.setattr(site, "ENABLE_USER_SITE", True)
    monkeypatch.setattr(site, "getusersitepackages", lambda: str(tmp_path / "user"))
    assert str(tmp_path / "user") not in run(SHOW)[1]
    monkeypatch.setattr(worker, "_list_library_files", lambda: [str(tmp_path / "user" / "torch" / "__init__.py")])
    assert str(tmp_path / "user") in run("import only_here\n" + SHOW)[1]


def test_module_that_is_missing_is_named_in_one_line(tmp_path):
    (tmp_path / "x.py").write_text("import no_such_module")
    done = run_worker(tmp_path / "x.py", timeout=60)
    assert done.exit_code != 0
    assert "cannot import no_such_module" in done.stderr and len(done.stderr.splitlines()) == 1


FORK = """
import os, sys, time
if not os.fork():
    time.sleep(300)
print(os.getpid(), flush=True)
time.sleep(300)
"""


def group_has_ended(number):
    for _ in range(200):
        try:
            os.killpg(number, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.02)
    return False


@pytest.mark.skipif(os.name != "posix", reason="process groups are POSIX")
def test_hanging_worker_is_killed_with_its_forks(tmp_path, monkeypatch):
    (tmp_path / "x.py").write_text(FORK)
    started = []
    stock = worker.subprocess.Popen
    monkeypatch.setattr(worker.subprocess, "Popen", lambda *a, **k: started.append(stock(*a, **k)) or started[-1])
    done = run_worker(tmp_path / "x.py", timeout=0.5)
    assert done.exit_code < 0
    assert "stopped after" in done.stderr_tail()
    assert group_has_ended(started[0].pid)


@pytest.mark.skipif(os.name != "posix", reason="process groups are POSIX")
def test_interruption_kills_the_worker_and_its_forks(tmp_path, monkeypatch):
    (tmp_path / "x.py").write_text(FORK)
    started = []

    class Interrupted(worker.subprocess.Popen):
        def communicate(self, *_, **__):
            started.append(self)
            assert int(self.stdout.readline()) == self.pid
            raise KeyboardInterrupt

    monkeypatch.setattr(worker.subprocess, "Popen", Interrupted)
    with pytest.raises(KeyboardInterrupt):
        run_worker(tmp_path / "x.py", timeout=60)
    assert started[0].returncode == -signal.SIGKILL
    assert group_has_ended(started[0].pid)


ORPHAN = """
import sys
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from lora_chat.system.worker import start_worker
process = start_worker(Path(sys.argv[2]), folder=Path(sys.argv[3]))
print(int(process.stdout.readline()), flush=True)
sys.stdin.read()
"""


@pytest.mark.skipif(os.name != "posix", reason="Windows has no process groups")
def test_worker_and_its_forks_end_when_the_parent_is_killed(tmp_path):
    (tmp_path / "x.py").write_text(FORK)
    (tmp_path / "parent.py").write_text(ORPHAN)
    root = Path(worker.__file__).parents[2]
    command = [sys.executable, str(tmp_path / "parent.py"), str(root), str(tmp_path / "x.py"), str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as parent:
        number = int(parent.stdout.readline())
        os.killpg(number, 0)
        parent.kill()
    assert group_has_ended(number)


def test_a_worker_does_not_end_when_the_thread_that_started_it_does(tmp_path):
    (tmp_path / "x.py").write_text("print(input())")
    started = []
    thread = Thread(target=lambda: started.append(start_worker(tmp_path / "x.py", folder=tmp_path)))
    thread.start()
    thread.join()
    assert started[0].communicate(b"alive\n")[0].strip() == b"alive"


def test_started_worker_gets_only_chosen_settings(tmp_path, monkeypatch):
    (tmp_path / "x.py").write_text("import json, os; print(json.dumps([os.getcwd(), dict(os.environ)]))")
    monkeypatch.setenv("ONLY_THIS", "1")
    monkeypatch.setenv("NOT_THIS", "1")
    options = {"only": ("ONLY_THIS", "HF_TOKEN"), "settings": {"ADDED": "2"}, "quiet": True}
    monkeypatch.setenv("HF_TOKEN", "x")
    with start_worker(tmp_path / "x.py", folder=tmp_path, **options) as process:
        folder, environment = json.loads(process.communicate()[0])
    assert wait_for_worker(process, 1) == 0
    assert folder == str(tmp_path)
    assert (environment["ONLY_THIS"], environment["ADDED"]) == ("1", "2")
    assert not {"NOT_THIS", "HF_TOKEN", "PATH"} & set(environment)


@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_AS is dependable on Linux")
def test_memory_of_a_worker_is_limited(tmp_path):
    (tmp_path / "x.py").write_text("x = bytes(2**30)")
    assert "MemoryError" in run_worker(tmp_path / "x.py", timeout=60, memory=2**29).stderr
    assert run_worker(tmp_path / "x.py", timeout=60, memory=2**33).exit_code == 0


def test_larger_files_get_more_time(tmp_path):
    (tmp_path / "x").write_bytes(b"")
    few = worker_timeout_seconds(tmp_path)
    os.truncate(tmp_path / "x", 10**11)
    assert worker_timeout_seconds(tmp_path) > 50 * few / 2
    assert worker_timeout_seconds(tmp_path / "x") == worker_timeout_seconds(tmp_path)


def test_relative_elements_of_search_paths_are_removed():
    given = {
        "PATH": os.pathsep.join(["", "/usr/bin", ".", "bin", "~/bin", "/bin"]),
        "LD_LIBRARY_PATH": os.pathsep.join(["", "/usr/lib"]),
        "PYTHONPATH": ".",
        "OTHER": ".",
    }
    assert make_search_paths_absolute(given) == ["PATH", "LD_LIBRARY_PATH", "PYTHONPATH"]
    assert given == {"PATH": f"/usr/bin{os.pathsep}/bin", "LD_LIBRARY_PATH": "/usr/lib", "OTHER": "."}
    assert make_search_paths_absolute(given) == []


def test_pools_fork_or_spawn_safely(monkeypatch):
    monkeypatch.setenv("PYTHONSAFEPATH", "")
    monkeypatch.setattr(worker, "get_all_start_methods", lambda: ["spawn"])
    monkeypatch.setattr(worker.sys, "version_info", (3, 10, 13))
    assert pool_context() is None
    monkeypatch.setattr(worker.sys, "version_info", (3, 11, 0))
    assert pool_context().get_start_method() == "spawn"
    assert os.environ["PYTHONSAFEPATH"] == "1"
    monkeypatch.setattr(worker, "get_all_start_methods", lambda: ["fork", "spawn"])
    assert pool_context().get_start_method() == "fork"
    monkeypatch.setattr(worker.sys, "platform", "darwin")
    assert pool_context().get_start_method() == "spawn"
