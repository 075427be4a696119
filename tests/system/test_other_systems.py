"""The package uses nothing that Windows or older versions of Python lack."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
POSIX = {"fcntl", "resource", "termios", "tty", "pty", "pwd", "grp", "readline", "syslog", "posix", "crypt", "spwd"}
NEWER = {
    "tomllib": set(),
    "typing": {
        "Self",
        "Never",
        "LiteralString",
        "assert_never",
        "assert_type",
        "reveal_type",
        "Required",
        "NotRequired",
    }
    | {"Unpack", "TypeVarTuple", "override", "dataclass_transform"},
    "enum": {"StrEnum", "verify", "EnumCheck", "ReprEnum"},
    "datetime": {"UTC"},
    "contextlib": {"chdir"},
    "hashlib": {"file_digest"},
    "itertools": {"batched"},
    "builtins": {"ExceptionGroup", "BaseExceptionGroup"},
    "asyncio": {"TaskGroup", "timeout", "Runner"},
    "logging": {"getLevelNamesMapping"},
    "math": {"cbrt", "exp2"},
    "operator": {"call"},
}
"""What Python 3.10 does not have yet, by module; a module without names is new as a whole."""
FILES = sorted((ROOT / "lora_chat").rglob("*.py"))


def imported_at_once(tree):
    """Yield the modules imported at the top of a file, outside of functions, `try` and `if`."""
    for node in tree.body:
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module.split(".")[0]


def newer_names(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module in NEWER:
            names = {alias.name for alias in node.names}
            yield from names & NEWER[node.module] if NEWER[node.module] else {node.module}
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if NEWER.get(alias.name) == set())
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            yield from {node.attr} & NEWER.get(node.value.id, set())
        elif isinstance(node, ast.Name):
            yield from {node.id} & NEWER["builtins"]


def test_no_module_imports_posix_modules_at_its_top():
    found = [(path.name, name) for path in FILES for name in imported_at_once(ast.parse(path.read_text("utf-8")))]
    assert [(path, name) for path, name in found if name in POSIX] == []
    assert len(found) > 500


def test_no_file_needs_more_than_python_3_10():
    for path in FILES:
        tree = ast.parse(path.read_text("utf-8"), feature_version=(3, 10))
        assert list(newer_names(tree)) == [], path


@pytest.mark.parametrize(
    "code", ["import tomllib", "from typing import Self", "import hashlib\nhashlib.file_digest", "ExceptionGroup"]
)
def test_check_finds_newer_names(code):
    assert list(newer_names(ast.parse(code)))


@pytest.mark.parametrize("words", [["--help"], ["sft", "--help"], ["recipe", "recipes/smoke.yaml"]])
def test_the_command_line_starts_without_modules_of_posix(words):
    code = (
        f"import sys; sys.modules.update(dict.fromkeys({sorted(POSIX - {'posix'})}))\n"
        f"from lora_chat.cli import main\nraise SystemExit(main({words}))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert "Traceback" not in done.stderr
    assert done.returncode == 0


OTHER_SYSTEM = """
import builtins, importlib, os, pkgutil, platform, sys

# The libraries have variants for other systems, so only the modules of lora_chat see the other system.
for name in ("torch", "transformers", "trl.trainer.sft_trainer", "peft", "bitsandbytes", "accelerate", "datasets"):
    importlib.import_module(name)
for name in ("psutil", "matplotlib.pyplot", "gguf", "httpx2", "filelock", "huggingface_hub", "rich.progress"):
    importlib.import_module(name)
importlib.import_module("uvicorn")
try:
    importlib.import_module("llama_cpp")
except ImportError:
    sys.modules["llama_cpp"] = type(sys)("llama_cpp")
real_import = builtins.__import__


def import_as_elsewhere(name, globals=None, *others, **options):
    importer = (globals or {}).get("__name__", "")
    if name.split(".")[0] in MISSING and importer.startswith("lora_chat"):
        raise ImportError(f"{importer} imports {name}, which this system lacks")
    return real_import(name, globals, *others, **options)


def refuse_proc(event, arguments):
    if event != "open" or not str(arguments[0]).startswith(("/proc/", "/sys/")):
        return
    frame = sys._getframe(1)
    while frame.f_code.co_filename.endswith("pathlib.py"):
        frame = frame.f_back
    if "/lora_chat/" in frame.f_code.co_filename:
        raise FileNotFoundError(2, "No such file or directory", str(arguments[0]))


builtins.__import__ = import_as_elsewhere
sys.addaudithook(refuse_proc)
sys.platform = SYSTEM
platform.libc_ver = lambda *arguments, **options: ("", "")
del os.sched_getaffinity
"""
IMPORT_ALL = """
import lora_chat
names = [module.name for module in pkgutil.walk_packages(lora_chat.__path__, "lora_chat.")]
for name in names:
    if name != "lora_chat.__main__":
        importlib.import_module(name)
from lora_chat.system.hardware import describe_cpu
from lora_chat.system.memory_usage import free_memory_bytes
assert len(names) > 200 and describe_cpu().memory_bytes > 0 and free_memory_bytes() > 0
for name, code in (("ImportError", "import resource"), ("FileNotFoundError", "open('/proc/self/status')")):
    try:  # the other system must be emulated
        exec(compile(code, "/lora_chat/x.py", "exec"), {"__name__": "lora_chat.x"})
    except Exception as error:
        assert type(error).__name__ == name
    else:
        raise AssertionError(code)
"""
RUN_ON_MACOS = """
sys.platform, MISSING = "darwin", ["spwd", "crypt"]
importlib.reload(sys.modules["platformdirs"])
from lora_chat.cli import main
raise SystemExit(main(sys.argv[1:]))
"""
GUARDED = {
    ("data/storage/build.py", "sched_getaffinity"),  # AttributeError is caught
    ("pipeline/machine_benchmark_worker.py", "fork"),  # a worker that fails means that there is no benchmark
    ("processes/agent.py", "SIGKILL"),  # several processes are refused on Windows
    ("processes/agent.py", "killpg"),
    ("processes/failure.py", "SIGHUP"),
    ("processes/launch.py", "sched_getaffinity"),
    ("processes/peers.py", "getuid"),
    ("processes/watch.py", "SIGUSR1"),
    ("processes/watch.py", "pthread_kill"),
    ("serving/admin_socket.py", "geteuid"),
    ("system/atomic_write.py", "O_NONBLOCK"),
    ("system/atomic_write.py", "fchmod"),
    ("system/cache_dir.py", "geteuid"),
    ("system/shared_folders.py", "O_DIRECTORY"),
    ("system/shared_folders.py", "O_NOFOLLOW"),
    ("system/shared_folders.py", "geteuid"),
    ("system/user_key.py", "geteuid"),
    ("system/worker.py", "SIGKILL"),
    ("system/worker.py", "killpg"),
    ("system/worker_start.py", "SIGKILL"),
    ("system/worker_start.py", "getpgrp"),
    ("system/worker_start.py", "killpg"),
}
"""Functions that Windows lacks, with the files that call them only after a look at the system."""
MISSING_ON_WINDOWS = {
    *("fork", "forkpty", "killpg", "getpgid", "getpgrp", "setpgid", "setsid", "getuid", "geteuid", "getgid", "chown"),
    *("fchmod", "fchown", "lchown", "mkfifo", "mknod", "nice", "openpty", "pread", "pwrite", "sched_getaffinity"),
    *(
        "sched_setaffinity",
        "statvfs",
        "sysconf",
        "uname",
        "wait3",
        "wait4",
        "getloadavg",
        "fdatasync",
        "posix_fallocate",
    ),
    *("posix_fadvise", "sendfile", "getxattr", "setxattr", "O_NOFOLLOW", "O_DIRECTORY", "O_NONBLOCK", "O_CLOEXEC"),
    *("SIGKILL", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGALRM", "alarm", "setitimer", "pthread_kill"),
}


@pytest.mark.slow
def test_modules_import_on_windows_and_sft_runs_on_macos(tmp_path):
    settings = f"output.directory={tmp_path / 'runs'}"
    words = ["sft", str(ROOT / "recipes/smoke.yaml"), "--set", settings]
    source = f"MISSING, SYSTEM = {sorted(POSIX)}, 'win32'\n{OTHER_SYSTEM}{IMPORT_ALL}{RUN_ON_MACOS}"
    environment = {**os.environ, "HOME": str(tmp_path), "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", source, *words], capture_output=True, text=True, timeout=250, env=environment
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "runs" / "smoke-1" / "result.json").is_file()


def test_functions_that_windows_lacks_are_called_after_a_look_at_the_system():
    calls = set()
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if (
                isinstance(node, ast.Attribute)
                and isinstance(node.value, ast.Name)
                and node.value.id in ("os", "signal")
            ):
                calls |= (
                    {(path.relative_to(ROOT / "lora_chat").as_posix(), node.attr)}
                    if node.attr in MISSING_ON_WINDOWS
                    else set()
                )
    assert calls == GUARDED
