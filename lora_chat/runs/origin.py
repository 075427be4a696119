"""Whose run is it: `origin.json` binds the files that decide what is loaded to a key of this user.

A run folder travels like any other: copied, packed into an archive, downloaded. Only one that this user made on this
machine, and that was not changed since, is taken as it is; its place does not matter.

Training writes these files one after the other and may be killed between any two of them. What it is about to write is
therefore announced as open first, under the same mark: such a file may be anything where the run goes on, because it is
written anew there; everywhere else it must be as it was signed.
"""

import hashlib
import json
import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from lora_chat.errors import IntegrityError, LoraChatError
from lora_chat.runs.run_folder import RunFolder
from lora_chat.system.regular_files import open_regular_file
from lora_chat.system.strict_json import parse_strict_json
from lora_chat.system.user_key import is_signed, sign

logger = logging.getLogger(__name__)

_ORIGIN_NAME = "origin.json"
_SIGNATURE_PURPOSE = "run origin 1"
_MAX_ORIGIN_BYTES = 1 << 16
PREPARED_FILES = (
    "plan.json",
    "recipe.yaml",
    "identity.json",
    "validation.jsonl",
    "validation_blocks.jsonl",
    "questions.jsonl",
)
"""Written before training begins, and again where it goes on."""
ADAPTER_FILES = (
    "adapter/adapter_config.json",
    "adapter/adapter_model.safetensors",
    "adapter/lora_chat.json",
    "adapter/chat_template.jinja",
)
"""Written when training ends."""
_SIGNED_FILES = (*PREPARED_FILES, *ADAPTER_FILES)
"""The files of a run that decide what is loaded, rendered and measured; none of them may be added either."""


def sign_run(run: RunFolder) -> None:
    """Mark a run as this user's, with all that it holds now. Raises OSError or LoraChatError."""
    run.write_json(run.path / _ORIGIN_NAME, _build_signed_origin(_digest_signed_files(run)))


def try_adopt_run(run: RunFolder) -> None:
    """Mark a run as this user's from now on; as `try_sign_run`."""
    if try_sign_run(run):
        logger.info(f"{run.path} is signed as your own from now on.")


def try_sign_run(run: RunFolder) -> bool:
    """As `sign_run`; without a key the run is only treated as a received one later, and that is said.

    Raises DiskFullError, DiskError or RecipeError when the run's folder cannot be written.
    """
    try:
        signed = _build_signed_origin(_digest_signed_files(run))
    except (OSError, LoraChatError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        logger.warning(
            f"{run.path} could not be signed as your own ({reason}); later commands treat it as a received one."
        )
        return False
    run.write_json(run.path / _ORIGIN_NAME, signed)
    return True


def start_run_signature(run: RunFolder) -> None:
    """Mark a run as this user's of which he wrote nothing yet, so that it can go on wherever it is cut short."""
    try:
        signed = _build_signed_origin({}, _SIGNED_FILES)
    except (OSError, LoraChatError):  # said when its files are signed
        return
    run.write_json(run.path / _ORIGIN_NAME, signed)


def announce_writes(run: RunFolder, names: Sequence[str]) -> None:
    """Announce that this process is about to write files of a run; nothing for one that is not signed."""
    stated = _try_read_signed_origin(run)
    if stated:
        files, open_files = stated
        run.write_json(run.path / _ORIGIN_NAME, _build_signed_origin(files, {*open_files, *names}))


def sign_written_files(run: RunFolder, names: Sequence[str]) -> None:
    """Sign the files that were announced and are written now, and no others.

    Of the others nothing more becomes known: an adapter that was open stays so until it is written again.
    """
    stated = _try_read_signed_origin(run)
    if stated:
        files, open_files = stated
        kept = {name: digest for name, digest in files.items() if name not in names}
        found = {name: digest for name, digest in _digest_signed_files(run).items() if name in names}
        run.write_json(run.path / _ORIGIN_NAME, _build_signed_origin(kept | found, open_files - {*names}))


def find_foreign_reason(run: RunFolder, *, resuming: bool = False) -> str | None:
    """Why a run is not known to be this user's, in one line; None for one that is.

    `resuming`: it is trained further, which writes everything anew that may be open.
    """
    hint = f"{run.path} is treated as received from somebody else: "
    try:
        stated = _read_signed_origin(run)
        if stated is None:
            return f"{hint}it is not signed. If you made it with an older version, take it as your own: --adopt."
        files, open_files = stated
        found = _digest_signed_files(run)
    except (OSError, LoraChatError) as error:
        return f"{hint}{error}"
    checked = [name for name in _SIGNED_FILES if not resuming or name not in open_files]
    changed = next((name for name in checked if files.get(name) != found.get(name)), None)
    return f"{hint}{changed} is not as it was signed." if changed else None


def _build_signed_origin(files: Mapping[str, str], open_files: Iterable[str] = ()) -> dict[str, Any]:
    origin: dict[str, Any] = {"version": 1, "files": dict(files)}
    if names := sorted(open_files):
        origin["open"] = names
    return origin | {"mac": sign(_SIGNATURE_PURPOSE, _encode_for_signing(origin))}


def _read_signed_origin(run: RunFolder) -> tuple[dict[str, str], set[str]] | None:
    """The digests that are signed, and the names of files that are open; None without a signature.

    Raises IntegrityError for one that this user did not make.
    """
    stated = _read_origin(run.path / _ORIGIN_NAME)
    if stated is None:
        return None
    mac = stated.pop("mac", None)
    if (
        not isinstance(mac, str)
        or not mac.isascii()
        or not is_signed(_SIGNATURE_PURPOSE, _encode_for_signing(stated), mac)
    ):
        raise IntegrityError("it was not made by this user on this machine.")
    return stated["files"], set(stated.get("open", ()))


def _try_read_signed_origin(run: RunFolder) -> tuple[dict[str, str], set[str]] | None:
    with suppress(OSError, LoraChatError):
        return _read_signed_origin(run)
    return None


def _encode_for_signing(origin: dict[str, Any]) -> bytes:
    return json.dumps(origin, sort_keys=True, separators=(",", ":")).encode("ascii")


def _read_origin(path: Path) -> dict[str, Any] | None:
    try:
        handle = open_regular_file(path)
    except FileNotFoundError:
        return None
    with os.fdopen(handle, "rb") as file:
        raw = file.read(_MAX_ORIGIN_BYTES + 1)
    try:
        found = parse_strict_json(raw.decode("ascii")) if len(raw) <= _MAX_ORIGIN_BYTES else None
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise IntegrityError(f"{path.name} is damaged.")
    return found


def _digest_signed_files(run: RunFolder) -> dict[str, str]:
    """The sha256 of each covered file that is there. Raises IntegrityError for a link or another kind of file."""
    digests = {}
    for name in _SIGNED_FILES:
        try:
            handle = open_regular_file(run.path / name)
        except FileNotFoundError:
            continue
        digest = hashlib.sha256()
        with os.fdopen(handle, "rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
        digests[name] = digest.hexdigest()
    return digests
