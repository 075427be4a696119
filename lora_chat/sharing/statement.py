"""Write and check an in-toto statement of a parcel, so that tools for supply chains can read its receipt.

The statement has the form of https://github.com/in-toto/attestation/blob/main/spec/v1/statement.md. Its subjects are
the parcel and its members, and its predicate is the receipt. It is made from a verified parcel only, so the same parcel
always gives the same bytes. It is not signed: the signature of a parcel is its member `model.sig`.
"""

import hashlib
import json
from pathlib import Path

from pydantic import JsonValue

from lora_chat.errors import IntegrityError, UsageError
from lora_chat.sharing.container import MAX_MEMBER_BYTES, PARCEL_SUFFIX, RECEIPT
from lora_chat.sharing.parcel import Parcel
from lora_chat.system.atomic_write import atomic_output_file
from lora_chat.system.bounded_files import read_bytes
from lora_chat.system.strict_json import parse_strict_json

STATEMENT_SUFFIX = ".intoto.json"
STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
PREDICATE_TYPE = "https://lora_chat/receipt/v1"
"""Name of the predicate. No host has such a name, so the name never leads to a page of a stranger."""
_MAX_STATEMENT_BYTES = MAX_MEMBER_BYTES[RECEIPT] * 2


def make_statement(parcel: Parcel) -> dict[str, JsonValue]:
    """Return the statement of a parcel. The name of the parcel comes from its receipt, since files get other names."""
    members = {name: hashlib.sha256(body).hexdigest() for name, body in sorted(parcel.members.items())}
    digests = {f"{parcel.receipt.name}{PARCEL_SUFFIX}": parcel.sha256, **members}
    return {
        "_type": STATEMENT_TYPE,
        "subject": [{"name": name, "digest": {"sha256": digest}} for name, digest in digests.items()],
        "predicateType": PREDICATE_TYPE,
        "predicate": json.loads(parcel.members[RECEIPT]),
    }


def encode_statement(parcel: Parcel) -> bytes:
    """Return the bytes of a statement: JSON in ASCII with sorted keys."""
    return (json.dumps(make_statement(parcel), indent=1, sort_keys=True, allow_nan=False) + "\n").encode("ascii")


def write_statement(parcel: Parcel, to: Path) -> None:
    """Write the statement of a parcel. Raise UsageError if the name belongs to another file, or its folder is missing.

    A file with the same content is left alone.
    """
    body = encode_statement(parcel)
    if not to.parent.is_dir():
        raise UsageError(f"{to.parent} is not a folder. Fix: make it, or name a file elsewhere.")
    if to.exists():
        if to.is_file() and to.stat().st_size == len(body) and to.read_bytes() == body:
            return
        raise UsageError(f"Another file exists already: {to}. Fix: name a new file.")
    with atomic_output_file(to, "the statement", shared=True) as file:
        file.write(body)


def check_statement(parcel: Parcel, path: Path) -> str:
    """Compare a file with the statement of a parcel and describe it. Raise IntegrityError if they differ.

    Other tools may format the same JSON differently, so values are compared and not bytes.
    """
    try:
        raw = read_bytes(path, _MAX_STATEMENT_BYTES)
    except FileNotFoundError as error:
        raise UsageError(f"There is no statement {path}.") from error
    try:
        stated = parse_strict_json(raw.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise IntegrityError(f"the statement {str(error)[:200]}") from error
    if not isinstance(stated, dict):
        raise IntegrityError("the statement is not a JSON object")
    if "payloadType" in stated or "dsseEnvelope" in stated:
        raise IntegrityError("it is a signed envelope. Fix: check its signature, and name a file with its payload")
    expected = make_statement(parcel)
    if differing := [key for key in sorted(stated.keys() | expected.keys()) if not _is_same(key, stated, expected)]:
        raise IntegrityError(f"the statement has another {differing[0][:100]!a} than this parcel")
    return f"the in-toto statement of this parcel, {len(parcel.members) + 1} subjects, not signed itself"


def _is_same(key: str, stated: dict[str, JsonValue], expected: dict[str, JsonValue]) -> bool:
    """Return whether a key has the same value on both sides. The encodings are compared, since Python has 1 == True."""
    if key not in stated or key not in expected:
        return False
    first, second = (json.dumps(side[key], sort_keys=True) for side in (stated, expected))
    return first == second
