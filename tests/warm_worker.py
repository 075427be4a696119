"""Workers that start fast, because they are forks of a process that has imported the large libraries.

They are for tests of the results of workers. The isolation of workers is tested with real ones (`tests/security`,
`tests/system`), and each worker also runs for real in at least one test. These workers have no time limit.
"""

import os
import runpy
import sys
import traceback
from pathlib import Path

import lora_chat
from lora_chat.system.worker import WorkerResult
from tests.fork_server import make_process

_PACKAGE_FOLDER = Path(lora_chat.__file__).parent


class WarmWorkers:
    """A source of workers whose `run` replaces `lora_chat.system.worker.run_worker`."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._count = folder, 0

    def run(self, code, arguments=(), *, timeout, stdin="", passed_variables=(), memory=None):
        self._count += 1
        folder = self._folder / str(self._count)
        folder.mkdir()
        (folder / "stdin").write_text(stdin, encoding="utf-8")
        process = make_process(run_in_folder, folder, run_program, folder, [str(code), *arguments])
        process.start()
        process.join()
        return WorkerResult(
            process.exitcode, *((folder / name).read_text("utf-8", "replace") for name in ("stdout", "stderr"))
        )


def run_in_folder(folder: Path, function, *arguments) -> None:
    """Call a function whose standard streams are files of a folder, and end this process with its exit code."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        os.dup2(os.open(folder / name, os.O_RDWR | os.O_CREAT), number)
    sys.stdin = os.fdopen(0, closefd=False)
    sys.stdout, sys.stderr = (os.fdopen(number, "w", buffering=1, closefd=False) for number in (1, 2))
    code = 0
    try:
        code = function(*arguments)
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code or 0)


def run_program(folder: Path, words: list[str]) -> None:
    """Run a script (a path) or a module (a name) in a folder, without the hub."""
    import huggingface_hub.constants

    huggingface_hub.constants.HF_HUB_OFFLINE = True
    os.environ["HF_HUB_OFFLINE"] = "1"
    os.chdir(folder)
    sys.argv = words
    if words[0].endswith(".py"):
        if Path(words[0]).is_relative_to(_PACKAGE_FOLDER):
            for name in [name for name in sys.modules if name.partition(".")[0] == "lora_chat"]:
                del sys.modules[name]  # the scripts of lora_chat check that they work without it
        runpy.run_path(words[0], run_name="__main__")
    else:
        runpy.run_module(words[0], run_name="__main__", alter_sys=True)
