"""Runs functions and command lines in forks of a process that has imported the libraries and an emulated card.

`card_process.py` starts this file as a script. Each line of stdin is a task and each line of stdout is an exit code.
"""

import fake_card  # noqa: I001 - before PyTorch

import functools
import gc
import importlib
import json
import os
import runpy
import signal
import sys
import traceback
from pathlib import Path

LIBRARIES = (
    *("bitsandbytes", "transformers.models.auto", "transformers.trainer", "trl.trainer.sft_trainer", "peft", "pytest"),
    *("lora_chat.pipeline.fine_tune", "lora_chat.training.trainer", "lora_chat.commands.parser", "datasets"),
    *("lora_chat.planning.local_device", "matplotlib.figure", "matplotlib.backends.backend_agg"),
    *(
        f"transformers.models.{name}.modeling_{name}"
        for name in ("llama", "qwen2", "qwen3", "mistral", "phi3", "gemma2")
    ),
)
BENCHMARK_MATRIX_SIZE = 64
"""Size of the matrices with which `plan` measures the card; its speed is the CPU's, so only the time matters."""


def main():
    """Serve tasks until stdin ends."""
    import bitsandbytes  # noqa: F401 - it loads its library for CUDA if it finds a card

    sys.modules["kernels"] = None  # as the command line does
    fake_card.install()
    for name in LIBRARIES:
        importlib.import_module(name)
    replies = os.fdopen(os.dup(1), "w")
    sys.modules["lora_chat.planning.local_device"]._GPU_MATRIX_SIZE = BENCHMARK_MATRIX_SIZE
    gc.collect()
    gc.freeze()  # a collection in a fork would copy all memory
    gc.unfreeze, gc.get_freeze_count = lambda: None, lambda: 0  # lora_chat would collect the frozen objects as well
    serve(os.fdopen(os.dup(0)), replies, run_task)
    os._exit(0)


def serve(requests, replies, run):
    """Run each requested task in a fork and reply with its exit code."""
    print("ready", file=replies, flush=True)
    for line in requests:
        task = json.loads(line)
        child = os.fork()
        if child == 0:
            requests.close()
            os._exit(_run_child(task, run))
        print(_wait(child, task["timeout"]), file=replies, flush=True)


def _run_child(task, run):
    """Run a task with its own working folder, streams and process group. Return the exit code."""
    os.setpgid(0, 0)
    folder = Path(task["folder"])
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        os.dup2(os.open(folder / name, os.O_RDWR | os.O_CREAT), number)
    sys.stdin = os.fdopen(0, closefd=False)
    sys.stdout, sys.stderr = (os.fdopen(number, "w", closefd=False) for number in (1, 2))
    os.chdir(task.get("cwd") or folder)
    try:
        code = run(task) or 0
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    return code


def _wait(child, timeout):
    """Return the exit code of a child, which is killed after `timeout` seconds."""

    def kill(*_):
        os.killpg(child, signal.SIGKILL)

    signal.signal(signal.SIGALRM, kill)
    signal.alarm(int(timeout))
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    signal.alarm(0)
    return code


def run_task(task):
    """Run a function, or `prepare` and a command line, on a new card. The result goes into result.json."""
    os.environ.update(task["environment"])
    fake_card.install(**task["card"])
    if task["nvml"] is not None:
        import fake_nvml

        fake_nvml.install(**task["nvml"]) if task["nvml"] else fake_nvml.install_for_cards()
    if task["command"] is not None:
        _fork_workers(task)
    function = _find_function(task["function"]) if task["function"] else None
    result = function(*task["arguments"]) if function else None
    code = 0
    if task["command"] is not None:
        from lora_chat.cli import main as run_command

        code = run_command(task["command"])
        result = result() if callable(result) else result
    report = {
        "result": result,
        "waits": dict(fake_card.WAITS),
        "operations": dict(fake_card.OPERATIONS),
        "peaks": [fake_card.peak_bytes(index) for index in range(len(fake_card._generators))],
    }
    (Path(task["folder"]) / "result.json").write_text(json.dumps(report))
    return code


def _find_function(location):
    """Return the function `name` of the file `path`."""
    path, name = location
    sys.path.insert(0, str(Path(path).parent))
    module = importlib.import_module(Path(path).stem)
    return getattr(module, name)


def _fork_workers(task):
    """Let lora_chat's workers be forks with the same cards, because interpreters that it starts have none."""
    requests, to_worker = os.pipe()
    from_worker, replies = os.pipe()
    if os.fork() == 0:
        os.close(to_worker)
        os.close(from_worker)
        serve(os.fdopen(requests), os.fdopen(replies, "w"), _run_worker_code)
        os._exit(0)
    os.close(requests)
    os.close(replies)
    source = functools.partial(
        _run_worker, os.fdopen(to_worker, "w"), os.fdopen(from_worker), Path(task["folder"]) / "workers"
    )
    for name, module in list(sys.modules.items()):
        if name.startswith("lora_chat") and hasattr(module, "run_worker"):
            module.run_worker = source


def _run_worker(requests, replies, home, code, arguments=(), *, timeout, stdin="", passed_variables=(), memory=None):
    """Replace `lora_chat.system.worker.run_worker`."""
    from lora_chat.system.worker import WorkerResult

    if not home.exists():
        home.mkdir()
        replies.readline()
    folder = home / str(len(list(home.iterdir())))
    folder.mkdir()
    (folder / "stdin").write_text(stdin, encoding="utf-8")
    task = {"folder": str(folder), "code": str(code), "arguments": list(arguments), "timeout": timeout}
    print(json.dumps(task), file=requests, flush=True)
    exit_code = int(replies.readline())
    return WorkerResult(exit_code, *((folder / name).read_text("utf-8", "replace") for name in ("stdout", "stderr")))


def _run_worker_code(task):
    """Run the module or the script of a worker."""
    sys.argv = [task["code"], *task["arguments"]]
    if task["code"].endswith(".py"):
        for name in [name for name in sys.modules if name.partition(".")[0] == "lora_chat"]:
            del sys.modules[name]  # scripts check that they work without it
        runpy.run_path(task["code"], run_name="__main__")
    else:
        runpy.run_module(task["code"], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
