"""Signatures that show whether this user wrote a run.

`origin.json` binds the files that decide what is loaded to the user's key. A run folder can be copied, packed into an
archive or downloaded. It is trusted only if this user made it on this machine and nobody has changed it since; its path
does not matter.

Training writes these files one after another and may be killed between any two of them. It therefore lists the files
that it will write as open first, under the same signature. When a run is resumed, an open file may have any content,
because it is written again; everywhere else it must match its signature.
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
    "test.jsonl",
    "test_blocks.jsonl",
    "questions.jsonl",
    "training_digests.safetensors",
    "general.jsonl",
    "lineage.json",
    "parent/adapter_config.json",
    "parent/adapter_model.safetensors",
    "parent/lora_chat.json",
    "parent/chat_template.jinja",
    "parent/parent.json",
    "parent/validation.jsonl",
    "parent/validation_blocks.jsonl",
    "parent/test.jsonl",
    "parent/test_blocks.jsonl",
    "parent/questions.jsonl",
    "parent/training_digests.safetensors",
)
"""Files that are written before training begins, and again when it is resumed."""
ADAPTER_FILES = (
    "adapter/adapter_config.json",
    "adapter/adapter_model.safetensors",
    "adapter/lora_chat.json",
    "adapter/chat_template.jinja",
)
"""Files that are written when training ends."""
_SIGNED_FILES = (*PREPARED_FILES, *ADAPTER_FILES)
"""Files of a run that decide what is loaded, rendered and measured; adding one of them is a change, too."""


def sign_run(run: RunFolder) -> None:
    """Sign the files of a run with this user's key. Raise OSError or LoraChatError."""
    run.write_json(run.path / _ORIGIN_NAME, _build_signed_origin(_digest_signed_files(run)))


def try_adopt_run(run: RunFolder) -> None:
    """Sign a run that was not signed, and report it. Raise the errors of `try_sign_run`."""
    if try_sign_run(run):
        logger.info(f"{run.path} is signed as your own from now on.")


def try_sign_run(run: RunFolder) -> bool:
    """Sign the files of a run if possible, and return whether it was. Without a key later commands distrust the run.

    Raise DiskFullError, DiskError or UsageError if the run folder cannot be written.
    """
    try:
        signed = _build_signed_origin(_digest_signed_files(run))
    except (OSError, LoraChatError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        logger.warning(
            f"{run.path} could not be signed as your own ({reason}); "
            "later commands treat it as received from somebody else."
        )
        return False
    run.write_json(run.path / _ORIGIN_NAME, signed)
    return True


def start_run_signature(run: RunFolder) -> None:
    """Sign an empty run with all files open, so that this user can resume it wherever it is interrupted."""
    try:
        signed = _build_signed_origin({}, _SIGNED_FILES)
    except (OSError, LoraChatError):  # `try_sign_run` reports it later
        return
    run.write_json(run.path / _ORIGIN_NAME, signed)


def announce_writes(run: RunFolder, names: Sequence[str]) -> None:
    """List files of a signed run as open, because this process is about to write them."""
    stated = _try_read_signed_origin(run)
    if stated:
        files, open_files = stated
        run.write_json(run.path / _ORIGIN_NAME, _build_signed_origin(files, {*open_files, *names}))


def sign_written_files(run: RunFolder, names: Sequence[str]) -> None:
    """Sign the announced files that are written now, and no others.

    Nothing is known about other open files, so they stay open until they are written again.
    """
    stated = _try_read_signed_origin(run)
    if stated:
        files, open_files = stated
        unchanged = {name: digest for name, digest in files.items() if name not in names}
        written = {name: digest for name, digest in _digest_signed_files(run).items() if name in names}
        run.write_json(run.path / _ORIGIN_NAME, _build_signed_origin(unchanged | written, open_files - {*names}))


def find_foreign_reason(run: RunFolder, *, resuming: bool = False) -> str | None:
    """Return why a run is not known to be this user's, in one line, or None if it is.

    With `resuming` open files may have any content, because training writes them again.
    """
    hint = f"{run.path} is treated as received from somebody else: "
    try:
        stated = _read_signed_origin(run)
        if stated is None:
            return f"{hint}it is not signed. If you made it with an older version, sign it with --adopt."
        files, open_files = stated
        digests = _digest_signed_files(run)
    except (OSError, LoraChatError) as error:
        return f"{hint}{error}"
    checked = [name for name in _SIGNED_FILES if not resuming or name not in open_files]
    changed = next((name for name in checked if files.get(name) != digests.get(name)), None)
    return f"{hint}{changed} does not match its signature." if changed else None


def has_own_signature(run: RunFolder) -> bool:
    """Return whether this user signed a run. Its files are not read, so this does not show that they are unchanged."""
    return _try_read_signed_origin(run) is not None


def _build_signed_origin(files: Mapping[str, str], open_files: Iterable[str] = ()) -> dict[str, object]:
    origin: dict[str, object] = {"version": 1, "files": dict(files)}
    if names := sorted(open_files):
        origin["open"] = names
    return origin | {"mac": sign(_SIGNATURE_PURPOSE, _encode_for_signing(origin))}


def _read_signed_origin(run: RunFolder) -> tuple[dict[str, str], set[str]] | None:
    """Return the signed digests and the names of open files, or None for a run without `origin.json`.

    Raise IntegrityError for a signature that this user did not make.
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
        raise IntegrityError("its signature was not made by this user on this machine.")
    return stated["files"], set(stated.get("open", ()))


def _try_read_signed_origin(run: RunFolder) -> tuple[dict[str, str], set[str]] | None:
    with suppress(OSError, LoraChatError):
        return _read_signed_origin(run)
    return None


def _encode_for_signing(origin: dict[str, object]) -> bytes:
    return json.dumps(origin, sort_keys=True, separators=(",", ":")).encode("ascii")


def _read_origin(path: Path) -> dict[str, Any] | None:
    try:
        handle = open_regular_file(path)
    except FileNotFoundError:
        return None
    with os.fdopen(handle, "rb") as file:
        raw = file.read(_MAX_ORIGIN_BYTES + 1)
    try:
        origin = parse_strict_json(raw.decode("ascii")) if len(raw) <= _MAX_ORIGIN_BYTES else None
    except ValueError:
        origin = None
    if not isinstance(origin, dict):
        raise IntegrityError(f"{path.name} is damaged.")
    return origin


def _digest_signed_files(run: RunFolder) -> dict[str, str]:
    """Return the sha256 of each signed file that exists. Raise IntegrityError for a link or another special file."""
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
