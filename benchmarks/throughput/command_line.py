"""Parse the command line of a runner, call it and write its result."""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from datasets import disable_progress_bars
from measuring import keep_freed_memory, reserve_stdout, write_result
from transformers.utils import logging
from work_folder import WorkFolder


def run_as_asked(
    description: str,
    run: Callable[[WorkFolder, int, dict[str, Any]], dict[str, Any]],
    defaults: dict[str, Any] | None = None,
) -> None:
    """Call `run` with the work folder, the steps and the setting; print only its result on stdout.

    With `defaults`, a setting may contain only their keys.
    """
    arguments = argparse.ArgumentParser(description=description)
    arguments.add_argument("--work", type=Path, required=True)
    arguments.add_argument("--steps", type=int, required=True)
    arguments.add_argument("--setting", type=json.loads, default={})
    options = arguments.parse_args()
    if defaults is not None and (unknown := options.setting.keys() - defaults.keys()):
        raise SystemExit(f"unknown in --setting: {', '.join(sorted(unknown))}")
    stdout = reserve_stdout()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    disable_progress_bars()
    setting = (defaults or {}) | options.setting
    if setting.get("mallopt"):
        keep_freed_memory()
    write_result(run(WorkFolder(options.work), options.steps, setting), stdout)
