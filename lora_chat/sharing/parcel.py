"""Open a parcel: read it once into memory, run every check in order, and use nothing before it was checked."""

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from lora_chat.errors import IntegrityError, UsageError
from lora_chat.models.adapter_config import LoraSettings, StoredAdapter
from lora_chat.models.identity import Identity
from lora_chat.sharing.compatibility import report_portability
from lora_chat.sharing.container import (
    CARD,
    CONFIG,
    MAX_PARCEL_BYTES,
    PARCEL_SUFFIX,
    RECEIPT,
    REQUIRED_MEMBERS,
    SIGNATURE,
    WEIGHTS,
    unpack_members,
)
from lora_chat.sharing.model_card import card_matches_receipt
from lora_chat.sharing.receipt import Receipt, decode_receipt
from lora_chat.sharing.signature import check_signature, check_signer
from lora_chat.sharing.tensor_checks import check_tensors, read_tensors
from lora_chat.system.regular_files import open_regular_file
from lora_chat.system.strict_json import parse_strict_json

_Value = TypeVar("_Value")


@dataclass(frozen=True)
class ParcelCheck:
    """The result of one check of a parcel."""

    name: str
    found: str
    passed: bool | None
    """Whether the check passed; None if it could not run, with the reason in `found`."""
    confirms: tuple[str, ...] = ()
    """Fields of the receipt that this check confirms if it passed."""


_CONFIRMED_FIELDS = {
    "digests": ("members",),
    "signature": ("signer",),
    "weights": ("parameters",),
    "receipt against weights": ("adapter", "chat_template"),
}


@dataclass(frozen=True)
class Parcel:
    """A parcel that passed all checks that need no base."""

    path: Path
    sha256: str
    """SHA-256 of the whole file."""
    receipt: Receipt
    members: Mapping[str, bytes]

    @property
    def stored(self) -> StoredAdapter:
        """Return the adapter in the form that is attached to a base."""
        identity = Identity.model_validate(self.receipt.base.model_dump())
        return StoredAdapter(
            name=str(self.path),
            config=json.loads(self.members[CONFIG]),
            read_weights=lambda: read_tensors(self.members[WEIGHTS]),
            identity=identity,
            template=self.receipt.chat_template,
            base_hint=_describe_merged_base(self.receipt),
        )


def _describe_merged_base(receipt: Receipt) -> str:
    """Return how the base of an adapter was made if its parent was merged into it; nothing for any other base."""
    parent = receipt.lineage[0] if receipt.lineage else None
    if parent is None or parent.how != "merge_first":
        return ""
    return (
        f"\nThis base is {parent.base} merged with the adapter {parent.name} (sha256 {parent.adapter}). Make it with "
        "lora-chat merge PARENT --to FOLDER, or ask the sender for the folder."
    )


def is_parcel(path: Path) -> bool:
    """Return whether a path looks like a parcel, by its suffix or its first bytes."""
    if not path.is_file():
        return False
    if path.suffix == PARCEL_SUFFIX:
        return True
    with path.open("rb") as file:
        return file.read(30 + len(RECEIPT))[30:] == RECEIPT.encode()


def open_parcel(
    path: Path,
    signer: Path | None = None,
    on_check: Callable[[ParcelCheck], None] = lambda _: None,
    *,
    name: str | None = None,
    follow_links: bool = True,
) -> Parcel:
    """Read and check a parcel; call `on_check` after every check; use `name` in messages.

    Unless `follow_links`, a symbolic link is refused.

    Raises IntegrityError at the first check that fails, UsageError if the file does not exist.
    """
    display_name = name or path

    def check(check_name: str, step: Callable[[], tuple[_Value, str, bool | None]]) -> _Value:
        try:
            value, result, passed = step()
        except IntegrityError as error:
            on_check(ParcelCheck(check_name, str(error), False))
            raise IntegrityError(f"{display_name} is refused ({check_name}): {error}.") from error
        on_check(ParcelCheck(check_name, result, passed, _CONFIRMED_FIELDS.get(check_name, ())))
        return value

    raw = check("file", lambda: _read(path, follow_links))
    members = check("container", lambda: _unpack(raw))
    receipt = check("receipt", lambda: _read_receipt(members))
    check("digests", lambda: _check_digests(members, receipt))
    check("signature", lambda: _check_signature(members, receipt, signer))
    settings = check("config", lambda: _check_config(members, receipt))
    check("weights", lambda: _check_weights(members, receipt, settings))
    check("receipt against weights", lambda: _check_settings_match(receipt, settings))
    check("card", lambda: _check_card(members, receipt, settings))
    return Parcel(path, hashlib.sha256(raw).hexdigest(), receipt, members)


def _read(path: Path, follow_links: bool) -> tuple[bytes, str, bool]:
    """Read the whole file. Raises IntegrityError if it is too large, UsageError if it cannot be read."""
    if not path.is_file():
        raise UsageError(f"There is no parcel {path}.")
    try:
        with os.fdopen(open_regular_file(path, follow=follow_links), "rb") as file:
            size = os.fstat(file.fileno()).st_size  # reading up to the limit would allocate the whole limit
            if size > MAX_PARCEL_BYTES:
                raise IntegrityError(f"it is larger than {MAX_PARCEL_BYTES} bytes")
            raw = file.read(size)
    except OSError as error:
        raise UsageError(f"Cannot read {path}: {error.strerror or error}.") from error
    return raw, f"{len(raw):,} bytes, sha256 {hashlib.sha256(raw).hexdigest()}", True


def _unpack(raw: bytes) -> tuple[dict[str, bytes], str, bool]:
    """Copy the members out of the container."""
    members = {name: bytes(body) for name, body in unpack_members(raw).items()}
    return members, f"{len(members)} members, byte for byte as lora_chat writes them", True


def _read_receipt(members: Mapping[str, bytes]) -> tuple[Receipt, str, bool]:
    """Decode the receipt."""
    receipt = decode_receipt(members[RECEIPT])
    return receipt, f"version {receipt.version}, complete, digest {receipt.digest[:12]}", True


def _check_digests(members: Mapping[str, bytes], receipt: Receipt) -> tuple[None, str, bool]:
    """Check that the receipt has the size and SHA-256 of every other member."""
    named = {name for name in REQUIRED_MEMBERS if name != RECEIPT}
    if receipt.members.keys() != named:
        raise IntegrityError("the receipt does not list exactly the other members")
    for name in sorted(named):
        body, stated = members[name], receipt.members[name]
        if len(body) != stated.size or hashlib.sha256(body).hexdigest() != stated.sha256:
            raise IntegrityError(f"{name} has another size or sha256 than in the receipt")
    return None, f"sha256 of {', '.join(sorted(named))} as in the receipt", True


def _check_signature(
    members: Mapping[str, bytes], receipt: Receipt, signer: Path | None
) -> tuple[None, str, bool | None]:
    """Check the signature, if there is one or if `signer` requires one."""
    signature = members.get(SIGNATURE)
    if signature is None:
        if receipt.signer is not None:
            raise IntegrityError("the receipt names a signer, but there is no signature")
        if signer is not None:
            raise IntegrityError("it is not signed")
        return None, "not signed: you must trust the person who gave it to you", None
    if receipt.signer is None:
        raise IntegrityError("it is signed, but the receipt names no signer")
    if signer is not None:
        check_signer(receipt.signer, signer)
    result, passed = check_signature(
        {name: members[name] for name in REQUIRED_MEMBERS}, signature, receipt.signer, required=signer is not None
    )
    return (
        None,
        result + ("" if signer or not passed else "; to require the key of the sender, use --signer KEY"),
        passed,
    )


def _check_config(members: Mapping[str, bytes], receipt: Receipt) -> tuple[LoraSettings, str, bool]:
    """Check that the config has exactly the settings and the bytes that lora_chat writes; return the settings."""
    try:
        config = parse_strict_json(members[CONFIG].decode("ascii"))
    except ValueError as error:
        raise IntegrityError(f"the config {str(error)[:200]}") from error
    if not isinstance(config, dict):
        raise IntegrityError("the config is not a JSON object")
    settings = LoraSettings.from_peft(config, "of this parcel", {"bias": "none"})
    expected = settings.to_peft_file(receipt.base.base, receipt.base.revision)
    differing_keys = [
        key for key in sorted(config.keys() | expected.keys()) if config.get(key, ...) != expected.get(key, ...)
    ]
    if differing_keys or encode_config(expected) != members[CONFIG]:
        raise IntegrityError(
            f"the config is not as lora_chat writes it ({differing_keys[0][:100]!a})"
            if differing_keys
            else "the config is not encoded as lora_chat encodes it"
        )
    summary = f"rank {settings.rank}, alpha {settings.alpha:g}, {len(settings.target_modules)} target modules"
    return settings, summary, True


def _check_weights(members: Mapping[str, bytes], receipt: Receipt, settings: LoraSettings) -> tuple[None, str, bool]:
    """Check the tensors, and that their number of parameters is the number in the receipt."""
    tensors = read_tensors(members[WEIGHTS])
    count = check_tensors(tensors, settings)
    if count != receipt.parameters:
        raise IntegrityError(f"{count} parameters, but the receipt states {receipt.parameters}")
    kinds = "LoRA pairs, replaced modules or rows" if settings.replaces_weights else "LoRA pairs"
    return None, f"{len(tensors)} tensors, {count:,} parameters, all of them {kinds} and finite", True


def _check_settings_match(receipt: Receipt, settings: LoraSettings) -> tuple[None, str, bool]:
    """Check that the receipt states the adapter of the config and the digest of its chat template."""
    if not settings.states_same_adapter(receipt.adapter):
        raise IntegrityError("the receipt describes another adapter than the config")
    template = receipt.chat_template
    if template is not None and hashlib.sha256(template.encode()).hexdigest() != receipt.base.chat_template:
        raise IntegrityError("the chat template does not have the digest in the receipt")
    brings = "" if template is None else "; the parcel contains a custom chat template"
    return None, f"{receipt.adapter.variant}, as in the receipt{brings}", True


def _check_card(members: Mapping[str, bytes], receipt: Receipt, settings: LoraSettings) -> tuple[None, str, bool]:
    """Check that the card is the one generated from the receipt, because hubs and editors show it to people."""
    portability = report_portability(settings, receipt.precision.mode, receipt.architecture)
    if not card_matches_receipt(members[CARD], receipt, portability):
        raise IntegrityError("README.md is not the card that lora_chat writes for this receipt")
    return None, "README.md is the card that lora_chat writes for this receipt, word for word", True


def encode_config(config: Mapping[str, object]) -> bytes:
    """Encode an `adapter_config.json` in the canonical form of a parcel."""
    return (json.dumps(config, indent=2, sort_keys=True) + "\n").encode("ascii")
