"""Whose run is it: `origin.json` binds the files that decide what is loaded to a key of this user.

A run folder travels like any other: copied, packed into an archive, downloaded. Only one that this user made on this
machine, and that was not changed since, is taken as it is; its place does not matter.

Training writes these files one after the other and may be killed between any two of them. What it is about to write is
therefore announced as open first, under the same mark: such a file may be anything where the run goes on, because it is
written anew there; everywhere else it must be as it was signed.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from lora_chat.errors import IntegrityError, LoraChatError
from lora_chat.runs.run_folder import RunFolder
from lora_chat.system.console import say
from lora_chat.system.regular_files import open_regular
from lora_chat.system.strict_json import parse_json
from lora_chat.system.user_key import is_signed, sign

_NAME = "origin.json"
_PURPOSE = "run origin 1"
_LARGEST = 1 << 16
PREPARED = (
    "plan.json",
    "recipe.yaml",
    "identity.json",
    "validation.jsonl",
    "validation_blocks.jsonl",
    "questions.jsonl",
)
"""Written before training begins, and again where it goes on."""
ADAPTER = (
    "adapter/adapter_config.json",
    "adapter/adapter_model.safetensors",
    "adapter/lora_chat.json",
    "adapter/chat_template.jinja",
)
"""Written when training ends."""
_COVERED = (*PREPARED, *ADAPTER)
"""The files of a run that decide what is loaded, rendered and measured; none of them may be added either."""


def sign_run(run: RunFolder) -> None:
    """Mark a run as this user's, with all that it holds now. Raises OSError or LoraChatError."""
    run.write_json(run.path / _NAME, _signed(_digests(run)))


def adopt_if_possible(run: RunFolder) -> None:
    """Mark a run as this user's from now on; as `sign_if_possible`."""
    if sign_if_possible(run):
        say(f"{run.path} is signed as your own from now on.")


def sign_if_possible(run: RunFolder) -> bool:
    """As `sign_run`; without a key the run is only treated as a received one later, and that is said.

    Raises SpaceError, DiskError or RecipeError when the run's folder cannot be written.
    """
    try:
        signed = _signed(_digests(run))
    except (OSError, LoraChatError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        say(f"{run.path} could not be signed as your own ({reason}); later commands treat it as a received one.")
        return False
    run.write_json(run.path / _NAME, signed)
    return True


def begin_origin(run: RunFolder) -> None:
    """Mark a run as this user's of which he wrote nothing yet, so that it can go on wherever it is cut short."""
    try:
        signed = _signed({}, _COVERED)
    except (OSError, LoraChatError):  # said when its files are signed
        return
    run.write_json(run.path / _NAME, signed)


def announce(run: RunFolder, names: Sequence[str]) -> None:
    """Announce that this process is about to write files of a run; nothing for one that is not signed."""
    stated = _stated_or_none(run)
    if stated:
        files, still_open = stated
        run.write_json(run.path / _NAME, _signed(files, {*still_open, *names}))


def sign_written(run: RunFolder, names: Sequence[str]) -> None:
    """Sign the files that were announced and are written now, and no others.

    Of the others nothing more becomes known: an adapter that was open stays so until it is written again.
    """
    stated = _stated_or_none(run)
    if stated:
        files, still_open = stated
        kept = {name: digest for name, digest in files.items() if name not in names}
        found = {name: digest for name, digest in _digests(run).items() if name in names}
        run.write_json(run.path / _NAME, _signed(kept | found, still_open - {*names}))


def why_foreign(run: RunFolder, *, going_on: bool = False) -> str | None:
    """Why a run is not known to be this user's, in one line; None for one that is.

    `going_on`: it is trained further, which writes everything anew that may be open.
    """
    hint = f"{run.path} is treated as received from somebody else: "
    try:
        stated = _stated(run)
        if stated is None:
            return f"{hint}it is not signed. If you made it with an older version, take it as your own: --adopt."
        files, still_open = stated
        found = _digests(run)
    except (OSError, LoraChatError) as error:
        return f"{hint}{error}"
    checked = [name for name in _COVERED if not going_on or name not in still_open]
    changed = next((name for name in checked if files.get(name) != found.get(name)), None)
    return f"{hint}{changed} is not as it was signed." if changed else None


def _signed(files: Mapping[str, str], still_open: Iterable[str] = ()) -> dict[str, Any]:
    found: dict[str, Any] = {"version": 1, "files": dict(files)}
    if names := sorted(still_open):
        found["open"] = names
    return found | {"mac": sign(_PURPOSE, _content(found))}


def _stated(run: RunFolder) -> tuple[dict[str, str], set[str]] | None:
    """The digests that are signed, and the names of files that are open; None without a signature.

    Raises IntegrityError for one that this user did not make.
    """
    stated = _read(run.path / _NAME)
    if stated is None:
        return None
    mac = stated.pop("mac", None)
    if not isinstance(mac, str) or not mac.isascii() or not is_signed(_PURPOSE, _content(stated), mac):
        raise IntegrityError("it was not made by this user on this machine.")
    return stated["files"], set(stated.get("open", ()))


def _stated_or_none(run: RunFolder) -> tuple[dict[str, str], set[str]] | None:
    with suppress(OSError, LoraChatError):
        return _stated(run)
    return None


def _content(found: dict[str, Any]) -> bytes:
    return json.dumps(found, sort_keys=True, separators=(",", ":")).encode("ascii")


def _read(path: Path) -> dict[str, Any] | None:
    try:
        handle = open_regular(path)
    except FileNotFoundError:
        return None
    with os.fdopen(handle, "rb") as file:
        raw = file.read(_LARGEST + 1)
    try:
        found = parse_json(raw.decode("ascii")) if len(raw) <= _LARGEST else None
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise IntegrityError(f"{path.name} is damaged.")
    return found


def _digests(run: RunFolder) -> dict[str, str]:
    """The sha256 of each covered file that is there. Raises IntegrityError for a link or another kind of file."""
    digests = {}
    for name in _COVERED:
        try:
            handle = open_regular(run.path / name)
        except FileNotFoundError:
            continue
        digest = hashlib.sha256()
        with os.fdopen(handle, "rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
        digests[name] = digest.hexdigest()
    return digests
