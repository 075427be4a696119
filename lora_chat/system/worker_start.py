"""The first code of a worker: `python -I worker_start.py REQUEST` prepares the interpreter and runs the worker's code.

This file imports only the standard library, because its interpreter may not find lora_chat: `-I` leaves out PYTHONPATH
and the user's site folder. It loads the package `lora_chat` from the folder of the process that started it.
"""

import importlib.util
import json
import runpy
import site
import sys
from pathlib import Path
from typing import Any


def load_package(folder: Path) -> None:
    """Import the package `lora_chat` from its folder; no other module beside that folder becomes importable."""
    name = "lora_chat"
    spec = importlib.util.spec_from_file_location(
        name, folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    if spec is None or spec.loader is None:
        raise SystemExit(f"The package {name} cannot be loaded from {folder}.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)


def limit_memory(size: int) -> None:
    """Limit the address space of this process and its children to `size` bytes, where the system can do that."""
    try:
        import resource
    except ImportError:  # not on Windows
        return
    resource.setrlimit(resource.RLIMIT_AS, (size, size))


def main(request: dict[str, Any]) -> None:
    """Run a module or a script, as `request` says."""
    for folder in request["sites"]:
        site.addsitedir(folder)
    if request["memory"]:
        limit_memory(request["memory"])
    sys.argv = [request["code"], *request["arguments"]]
    sys.modules["kernels"] = None  # type: ignore[assignment]  # as `block_hub_code` says
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
