"""A folder that is watched for parcels: new ones are proven and answer, changed ones are swapped, removed ones end.

Everybody who can write into the folder can offer a parcel, so nothing is asked and no consent of the command line
applies: what needs consent is refused.
"""

import logging
import os
import stat
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lora_chat.errors import LoraChatError, UsageError, first_line
from lora_chat.pipeline.admitted_model import AdmittedModel
from lora_chat.pipeline.served_names import read_named_source, shorten_source
from lora_chat.sharing.container import MAX_PARCEL_BYTES, PARCEL_SUFFIX
from lora_chat.system.sanitize import sanitize_line

if TYPE_CHECKING:
    from lora_chat.pipeline.served_models import ServedModels

logger = logging.getLogger(__name__)

POLL_SECONDS = 1.0
"""Time between two looks at the folder, during which a file must not change."""
MAX_FILES, _MAX_ENTRIES = 256, 10_000
"""Number of parcels and of all entries of the folder that are looked at."""

FileState = tuple[int, int, int, int, int]
"""Device, inode, size, and times of the last change of content and of the file itself, which nobody can set."""


@dataclass
class _WatchedFile:
    """A parcel in the folder."""

    state: FileState
    """State at the last look."""
    done: FileState | None = None
    """State of the content that was admitted or refused."""
    model: AdmittedModel | None = None
    """The model that answers with a content of this file."""


class AdapterFolder:
    """The watcher of one folder."""

    def __init__(self, folder: Path, models: "ServedModels") -> None:
        check_adapter_folder(folder)
        self._folder, self._models = folder, models
        self._files: dict[str, _WatchedFile] = {}
        self._reported: set[str] = set()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="adapter folder", daemon=True)

    def start(self) -> None:
        """Look at the folder from now on, in another thread."""
        self._thread.start()

    def close(self) -> None:
        """Stop looking. The models stay in memory."""
        self._stopped.set()

    def look(self) -> None:
        """Admit parcels that did not change since the last look, and unload those that are not there."""
        try:
            states = dict(self._list_parcels())
        except OSError as error:
            self._report(f"{self._folder} cannot be read ({error.strerror}); its models stay as before.")
            return
        for name in self._files.keys() - states.keys():
            self._remove(name, self._files.pop(name))
        for name, state in sorted(states.items()):
            watched = self._files.get(name)
            if watched is None or watched.state != state:
                self._files[name] = _WatchedFile(
                    state, watched.done if watched else None, watched.model if watched else None
                )
            elif watched.done != state and not self._stopped.is_set():
                watched.done = state
                self._admit(name, watched)

    def _watch(self) -> None:
        while not self._stopped.is_set():
            try:
                self.look()
            except Exception as error:
                self._report(f"{self._folder} could not be looked at: {first_line(error)}")
            self._stopped.wait(POLL_SECONDS)

    def _list_parcels(self) -> Iterator[tuple[str, FileState]]:
        """Yield the names and states of regular files with the ending of parcels; temporary names begin with a dot."""
        number = 0
        with os.scandir(self._folder) as entries:
            for count, entry in enumerate(entries):
                if count >= _MAX_ENTRIES or number >= MAX_FILES:
                    self._report(f"{self._folder} has more than {MAX_FILES} parcels or {_MAX_ENTRIES:,} entries.")
                    return
                if entry.name.startswith(".") or not entry.name.endswith(PARCEL_SUFFIX):
                    continue
                try:
                    status = entry.stat(follow_symlinks=False)
                except FileNotFoundError:
                    continue
                if not stat.S_ISREG(status.st_mode) or not 0 < status.st_size <= MAX_PARCEL_BYTES:
                    self._report(f"{entry.name} is ignored: only regular files of the size of a parcel are opened.")
                    continue
                number += 1
                yield entry.name, (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)

    def _admit(self, name: str, watched: _WatchedFile) -> None:
        """Admit a new or changed parcel. A changed one that fails its checks ends the model of its old content."""
        before = watched.model
        replaces = before is not None and self._models.find(before.name) is before
        try:
            watched.model = self._models.admit_stranger(str(self._folder / name), replaces=replaces)
        except LoraChatError:  # reported and listed by `admit_stranger`
            if replaces and before is not None:
                logger.warning(f"{before.name} ends, because its file has another content now, which is refused.")
                self._dismiss(before)
            watched.model = None

    def _remove(self, name: str, watched: _WatchedFile) -> None:
        """Unload the model of a file that is not there any more."""
        if watched.model is not None:
            self._dismiss(watched.model)
        else:
            try:
                self._models.forget_refusal(read_named_source(str(self._folder / name)).name)
            except UsageError:  # a name that requests cannot use
                self._models.forget_refusal(shorten_source(name))

    def _dismiss(self, model: AdmittedModel) -> None:
        """Unload a model unless another one has its name now."""
        if self._models.find(model.name) is model:
            try:
                self._models.dismiss(model.name)
            except UsageError as error:  # unloaded by the administrator in the meantime
                logger.info(str(error))

    def _report(self, text: str) -> None:
        """Log a problem of the folder once."""
        if text not in self._reported and len(self._reported) < MAX_FILES:
            self._reported.add(text)
            logger.warning(sanitize_line(text, 500))


def check_adapter_folder(folder: Path) -> None:
    """Raise UsageError unless a path is a folder that can be listed."""
    try:
        with os.scandir(folder):
            pass
    except OSError as error:
        raise UsageError(
            f"--adapters {sanitize_line(str(folder), 300)} cannot be watched: {error.strerror}. "
            "Fix: name a folder for parcels (files of `lora-chat pack`)."
        ) from error
