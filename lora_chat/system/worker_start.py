"""Start script of a worker: `python -I worker_start.py REQUEST` prepares the interpreter and runs the worker's code.

This file imports only the standard library, because its interpreter may not find lora_chat: `-I` ignores PYTHONPATH and
the user's site folder. It loads the package `lora_chat` from the folder that the parent process uses.
"""

import importlib.util
import json
import os
import runpy
import signal
import site
import sys
import threading
import time
from pathlib import Path
from typing import Any

_POLL_SECONDS = 0.5


def load_package(folder: Path) -> None:
    """Import the package `lora_chat` from its folder, without making other modules beside that folder importable."""
    name = "lora_chat"
    spec = importlib.util.spec_from_file_location(
        name, folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    if spec is None or spec.loader is None:
        raise SystemExit(f"The package {name} cannot be loaded from {folder}.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)


def exit_with_parent(parent: int) -> None:
    """End this process and its group when the parent process has ended, even if the parent was killed.

    A signal of Linux (PR_SET_PDEATHSIG) is not used, because it is sent when the parent's thread ends.
    """
    if os.name != "posix" or os.getppid() not in (parent, 1):  # there is a launcher in between
        return

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(_POLL_SECONDS)
        if os.getpgrp() == os.getpid():  # `start_worker` makes it a group leader
            os.killpg(0, signal.SIGKILL)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def limit_memory(size: int) -> None:
    """Limit the address space of this process and its children to `size` bytes, if the system supports it."""
    try:
        import resource
    except ImportError:  # Windows
        return
    resource.setrlimit(resource.RLIMIT_AS, (size, size))


def main(request: dict[str, Any]) -> None:
    """Prepare the interpreter and run the module or script of a request."""
    exit_with_parent(request["parent"])
    for folder in request["sites"]:
        site.addsitedir(folder)
    if request["memory"]:
        limit_memory(request["memory"])
    sys.argv = [request["code"], *request["arguments"]]
    sys.modules["kernels"] = None  # type: ignore[assignment]  # see `block_hub_code` in library_settings.py
    try:
        if request["package"]:
            load_package(Path(request["package"]))
        if request["is_script"]:
            runpy.run_path(request["code"], run_name="__main__")
        else:
            runpy.run_module(request["code"], run_name="__main__", alter_sys=True)
    except ModuleNotFoundError as error:
        raise SystemExit(
            f"A worker process cannot import {error.name}. Workers ignore PYTHONPATH: "
            f"install {error.name} into the environment {sys.prefix}."
        ) from error


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
