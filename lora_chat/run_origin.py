"""Whose run is it: `origin.json` binds the files that decide what is loaded to a key of this user.

A run folder travels like any other: copied, packed into an archive, downloaded. Only one that this user made on this
machine, and that was not changed since, is taken as it is; its place does not matter.
"""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from lora_chat.errors import IntegrityError, LoraChatError
from lora_chat.run_folder import RunFolder
from lora_chat.system.console import say
from lora_chat.system.regular_files import open_regular
from lora_chat.system.strict_json import parse_json
from lora_chat.system.user_key import is_signed, sign

_NAME = "origin.json"
_PURPOSE = "run origin 1"
_LARGEST = 1 << 16
_COVERED = (
    "plan.json",
    "recipe.yaml",
    "identity.json",
    "validation.jsonl",
    "validation_blocks.jsonl",
    "questions.jsonl",
    "adapter/adapter_config.json",
    "adapter/adapter_model.safetensors",
    "adapter/lora_chat.json",
    "adapter/chat_template.jinja",
)
"""The files of a run that decide what is loaded, rendered and measured; none of them may be added either."""


def sign_run(run: RunFolder) -> None:
    """Mark a run as this user's, with all that it holds now. Raises OSError or LoraChatError."""
    run.write_json(run.path / _NAME, _signed(run))


def sign_if_possible(run: RunFolder) -> None:
    """The same; without a key the run is only treated as a received one later, and that is said.

    Raises SpaceError, DiskError or RecipeError when the run's folder cannot be written.
    """
    try:
        signed = _signed(run)
    except (OSError, LoraChatError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        say(f"{run.path} could not be signed as your own ({reason}); later commands treat it as a received one.")
        return
    run.write_json(run.path / _NAME, signed)


def _signed(run: RunFolder) -> dict[str, Any]:
    found: dict[str, Any] = {"version": 1, "files": _digests(run)}
    return found | {"mac": sign(_PURPOSE, _content(found))}


def why_foreign(run: RunFolder) -> str | None:
    """Why a run is not known to be this user's, in one line; None for one that is."""
    hint = f"{run.path} is treated as received from somebody else: "
    try:
        stated = _read(run.path / _NAME)
        if stated is None:
            return f"{hint}it is not signed. If you made it with an older version, take it as your own: --adopt."
        mac = stated.pop("mac", None)
        if not isinstance(mac, str) or not mac.isascii() or not is_signed(_PURPOSE, _content(stated), mac):
            return f"{hint}it was not made by this user on this machine."
        changed = _difference(stated.get("files"), _digests(run))
    except (OSError, LoraChatError) as error:
        return f"{hint}{error}"
    return f"{hint}{changed} is not as it was signed." if changed else None


def _difference(stated: Any, found: dict[str, str]) -> str | None:
    if not isinstance(stated, dict):
        return _NAME
    return next((name for name in _COVERED if stated.get(name) != found.get(name)), None)


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
