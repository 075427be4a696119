"""The services that receive the metrics of one run: they start before weights load and end after the comparison."""

import importlib
import json
import logging
import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from lora_chat.errors import (
    IntegrityError,
    UnavailableError,
    explain_disk_error,
    explain_write_errors,
    first_line,
)
from lora_chat.system.atomic_write import private_umask, write_text_atomically
from lora_chat.system.bounded_files import SMALL_FILE_BYTES, read_json_object
from lora_chat.system.console import keep_stdout_for_results
from lora_chat.training.callbacks.reporter_guard import ReporterGuard, guard_integrations
from lora_chat.training.reporters import Reporter, find_reporters

if TYPE_CHECKING:
    from transformers import Trainer

logger = logging.getLogger(__name__)

_IDS_NAME = "reporters.json"
"""File of a run with the ids of its runs in the services, by the name of the service."""


class ReporterSession:
    """The services of one run. The end of training is not forwarded before `close`, so that figures can follow."""

    def __init__(self, names: Sequence[str] = ()) -> None:
        self.names = tuple(names)
        self._guards: list[ReporterGuard] = []

    def guard(self, trainer: "Trainer") -> None:
        """Protect a training from its services. End the integrations of an earlier trainer, whose plan did not fit."""
        self._end_training()
        self._guards = guard_integrations(trainer)

    def log_final(self, figures: Mapping[str, float], texts: Mapping[str, str]) -> None:
        """Send the figures of the comparison and its verdict to the services. A failure is a warning."""
        reporters = {reporter.name: reporter for reporter in find_reporters(self.names)}
        for guard in self._guards:
            reporter = reporters.get(guard.name)
            logged = {f"eval_{name}": text for name, text in texts.items()}  # Transformers files them under `eval`
            guard.log_final({**figures, **(logged if reporter and reporter.note is None else {})})
            if reporter and reporter.note is not None:
                for name, text in texts.items():
                    guard.call(partial(reporter.note, sys.modules[reporter.modules[0]], name, text))

    def close(self, *, failed: bool) -> None:
        """End the runs of the services."""
        self._end_training()
        for reporter in find_reporters(self.names):
            module = sys.modules.get(reporter.modules[0])
            if module is not None:
                with suppress(Exception):  # the training is complete, and its metrics are in the run folder
                    reporter.finish(module, failed)

    def _end_training(self) -> None:
        """Forward the end of training to the integrations, once."""
        for guard in self._guards:
            guard.end_training()
        self._guards = []


@contextmanager
def finished_reporters(names: Sequence[str]) -> Iterator[ReporterSession]:
    """Yield the services, keep stdout for results while they report, and end their runs after the block."""
    session = ReporterSession(names)
    if not names:
        yield session
        return
    with keep_stdout_for_results():
        failed = True
        try:
            yield session
            failed = False
        finally:
            session.close(failed=failed)


def start_reporters(names: Sequence[str], folder: Path, *, continues: bool = False) -> None:
    """Set the variables of the services, and connect those that need it. Raise UnavailableError if one cannot start.

    `continues` takes up the runs of the services that the folder names. Transformers uses a run that is already active.
    """
    folder = folder.absolute()  # services write addresses of files
    ids = _read_ids(folder) if continues else {}
    for reporter in find_reporters(names):
        _check_folder(reporter, folder)
        for name, value in reporter.defaults(folder).items():
            os.environ.setdefault(name, value)
        os.environ.update(reporter.required(folder))
        if reporter.start is None:
            continue
        logger.info(f"Connecting to {reporter.name}")
        with explain_write_errors(folder, f"the files of {reporter.name}"):
            reporter.locate(folder).mkdir(mode=0o700, exist_ok=True)
        if (started := _start(reporter, folder, ids.get(reporter.name))) is not None:
            ids[reporter.name] = started
            write_text_atomically(folder / _IDS_NAME, json.dumps(ids) + "\n", "the ids of the services' runs")


def _start(reporter: Reporter, folder: Path, earlier: str | None) -> str | None:
    """Start a service and return the id of its run. A run that cannot be continued is replaced by a new one."""
    assert reporter.start is not None
    try:
        with private_umask(), keep_stdout_for_results():
            started = reporter.start(importlib.import_module(reporter.modules[0]), folder.name, earlier)
        return started if isinstance(started, str) and _is_id(started) else None
    except Exception as error:
        if isinstance(error, OSError) and (explained := explain_disk_error(error)):
            raise explained from error
        if earlier is not None:
            logger.warning(f"{reporter.name} cannot continue its run: {first_line(error)}. It starts another.")
            return _start(reporter, folder, None)
        raise UnavailableError(
            f"{reporter.name} could not start: {first_line(error)}. Fix: check its server and login, or leave "
            f"{reporter.name} out of output.report_to."
        ) from error


def _read_ids(folder: Path) -> dict[str, str]:
    """Return the ids of the runs in the services; none if the file is missing or damaged."""
    with suppress(OSError, IntegrityError):
        ids = read_json_object(folder / _IDS_NAME, SMALL_FILE_BYTES)
        return {str(name): value for name, value in ids.items() if isinstance(value, str) and _is_id(value)}
    return {}


def _is_id(text: str) -> bool:
    """Return whether a text has the form of an id."""
    return re.fullmatch(r"[A-Za-z0-9_-]{1,128}", text) is not None


def _check_folder(reporter: Reporter, folder: Path) -> None:
    """Raise IntegrityError if there are settings that a service would read, because anybody may have written them."""
    settings = reporter.locate(folder) / "settings"
    if os.path.lexists(settings):
        raise IntegrityError(f"{reporter.name} would read {settings}, which may be of a stranger. Fix: delete it.")
