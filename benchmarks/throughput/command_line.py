"""What every runner does with its command line, before it trains and after."""

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
    """Call `run` with the work folder, the steps and the setting; print its result, and nothing else, on stdout.

    With `defaults`, a setting may have their keys alone.
    """
    arguments = argparse.ArgumentParser(description=description)
    arguments.add_argument("--work", type=Path, required=True)
    arguments.add_argument("--steps", type=int, required=True)
    arguments.add_argument("--setting", type=json.loads, default={})
    given = arguments.parse_args()
    if defaults is not None and (unknown := given.setting.keys() - defaults.keys()):
        raise SystemExit(f"unknown in --setting: {', '.join(sorted(unknown))}")
    stdout = reserve_stdout()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    disable_progress_bars()
    setting = (defaults or {}) | given.setting
    if setting.get("mallopt"):
        keep_freed_memory()
    write_result(run(WorkFolder(given.work), given.steps, setting), stdout)
