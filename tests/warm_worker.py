"""Workers that start fast, because they are forks of a process that has imported the large libraries.

They are for tests of the results of workers. The isolation of workers is tested with real ones (`tests/security`,
`tests/system`), and each worker also runs for real in at least one test. These workers have no time limit.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

from lora_chat.system.worker import WorkerResult

SERVER = """
import gc, importlib, json, os, runpy, sys
from pathlib import Path
for name in sys.argv[1:]:
    importlib.import_module(name)
gc.collect()
gc.freeze()  # a collection in a fork would visit, and so copy, the memory of all libraries
print("ready", flush=True)
for line in sys.stdin:
    task = json.loads(line)
    child = os.fork()
    if not child:
        for number, name in enumerate(("stdin", "stdout", "stderr")):
            file = os.open(Path(task["folder"]) / name, os.O_RDWR | os.O_CREAT)
            os.dup2(file, number)
        sys.stdin = open(0, closefd=False)
        os.chdir(task["folder"])
        sys.argv = [task["code"], *task["arguments"]]
        code = 0
        try:
            if task["code"].endswith(".py"):
                runpy.run_path(task["code"], run_name="__main__")
            else:
                runpy.run_module(task["code"], run_name="__main__", alter_sys=True)
        except SystemExit as error:
            code = error.code if isinstance(error.code, int) else int(error.code is not None)
        except BaseException:
            import traceback
            traceback.print_exc()
            code = 1
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""
LIBRARIES = ("torch", "transformers.models.auto.tokenization_auto", "trl.trainer.sft_trainer", "peft", "bitsandbytes")


class WarmWorkers:
    """A source of workers whose `run` replaces `lora_chat.system.worker.run_worker`."""

    def __init__(self, folder: Path, libraries: tuple[str, ...] = LIBRARIES) -> None:
        self._folder, self._count = folder, 0
        self._server = subprocess.Popen(
            [sys.executable, "-c", SERVER, *libraries],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={
                **os.environ,
                "OMP_NUM_THREADS": "1",
                "HF_HUB_OFFLINE": "1",
            },  # threads of OpenMP do not survive a fork
            cwd=Path(__file__).parents[1],
        )
        assert self._server.stdout.readline() == "ready\n"

    def run(self, code, arguments=(), *, timeout, stdin="", passed_variables=(), memory=None):
        self._count += 1
        folder = self._folder / str(self._count)
        folder.mkdir()
        (folder / "stdin").write_text(stdin, encoding="utf-8")
        task = {"folder": str(folder), "code": str(code), "arguments": list(arguments)}
        self._server.stdin.write(json.dumps(task) + "\n")
        self._server.stdin.flush()
        exit_code = int(self._server.stdout.readline())
        return WorkerResult(
            exit_code, *((folder / name).read_text("utf-8", "replace") for name in ("stdout", "stderr"))
        )

    def close(self):
        self._server.communicate()
