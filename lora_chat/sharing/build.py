"""Build the members of a parcel from an adapter and its receipt, and write the file."""

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path

from pydantic import JsonValue

from lora_chat.config.adapter_section import AdapterSection
from lora_chat.errors import UsageError
from lora_chat.models.adapter_config import LoraSettings
from lora_chat.sharing.compatibility import report_portability
from lora_chat.sharing.container import (
    CARD,
    CONFIG,
    MAX_MEMBER_BYTES,
    RECEIPT,
    REQUIRED_MEMBERS,
    SIGNATURE,
    WEIGHTS,
    pack_members,
)
from lora_chat.sharing.model_card import format_parcel_card
from lora_chat.sharing.parcel import encode_config
from lora_chat.sharing.receipt import MemberReceipt, Receipt, encode_receipt
from lora_chat.sharing.signature import read_public_key, sign_members
from lora_chat.system.atomic_write import atomic_output_file

_FIRST_SETTINGS = ("rank", "alpha", "dropout", "target_modules", "variant")
"""Settings of an adapter that every receipt has."""
PLACEHOLDER_DIGEST = "0" * 64
"""Digest in a receipt that is not finished."""


def build_members(
    draft: Receipt, weights: bytes, key: Path | None = None, settings: LoraSettings | None = None
) -> dict[str, bytes]:
    """Build all members of a parcel. Without a key, the same receipt and weights give the same bytes.

    `settings` are needed for an adapter that replaces rows, because the receipt does not name their modules.

    Raises UsageError for a key that cannot sign, ValueError for a member that is too large.
    """
    signer = read_public_key(key) if key else None
    settings = settings or LoraSettings.from_section(draft.adapter)
    config = settings.to_peft_file(draft.base.base, draft.base.revision)
    portability = report_portability(settings, draft.precision.mode, draft.architecture)
    members = {
        CONFIG: encode_config(config),
        WEIGHTS: weights,
        CARD: format_parcel_card(draft, portability).encode("utf-8"),
    }
    digests = {
        name: MemberReceipt(size=len(body), sha256=hashlib.sha256(body).hexdigest()) for name, body in members.items()
    }
    final = draft.model_copy(update={"members": digests, "signer": signer})
    receipt_fields = final.model_dump(mode="json")
    del receipt_fields["digest"]
    receipt_fields["adapter"] = _leave_out_defaults(draft.adapter)
    members[RECEIPT] = encode_receipt(receipt_fields)
    if oversized := [name for name, body in members.items() if len(body) > MAX_MEMBER_BYTES[name]]:
        raise ValueError(
            f"{oversized[0]} has {len(members[oversized[0]]):,} bytes; at most "
            f"{MAX_MEMBER_BYTES[oversized[0]]:,} are allowed in a parcel"
        )
    if key:
        members[SIGNATURE] = sign_members({name: members[name] for name in REQUIRED_MEMBERS}, key)
    return members


def _leave_out_defaults(adapter: AdapterSection) -> dict[str, JsonValue]:
    """Return the settings of an adapter, the newer ones only if they are set, because older versions refuse them."""
    fields: dict[str, JsonValue] = adapter.model_dump(mode="json")
    defaults = {name: info.default for name, info in AdapterSection.model_fields.items()}
    return {
        name: value
        for name, value in fields.items()
        if name in _FIRST_SETTINGS or getattr(adapter, name) != defaults[name]
    }


def write_parcel(members: Mapping[str, bytes], to: Path, verify: Callable[[Path], object]) -> None:
    """Write the file under a temporary name, call `verify` on it, and rename it only if that raises nothing.

    Raises UsageError if another file has that name already, or if its folder is missing.
    """
    if not to.parent.is_dir():
        raise UsageError(f"{to.parent} is not a folder. Fix: make it, or name a file elsewhere with --out.")
    if to.exists() and (not to.is_file() or not _has_same_content(to, members)):
        raise UsageError(f"Another file exists already: {to}. Fix: name a new file with --out.")
    with atomic_output_file(to, "the parcel", shared=True) as file:
        for piece in pack_members(members):
            file.write(piece)
        file.flush()
        verify(Path(file.name))


def _has_same_content(path: Path, members: Mapping[str, bytes]) -> bool:
    """Return whether a file is the parcel of these members, byte for byte."""
    if path.stat().st_size != sum(map(len, pack_members(members))):
        return False
    with path.open("rb") as file:
        return all(file.read(len(piece)) == piece for piece in pack_members(members))
