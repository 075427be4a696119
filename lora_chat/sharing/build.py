"""The members of a parcel, made of an adapter and the facts about it."""

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path

from lora_chat.errors import RecipeError
from lora_chat.models.adapter_config import plain_config
from lora_chat.sharing.compatibility import report_portability
from lora_chat.sharing.container import CARD, CONFIG, LARGEST, MEMBERS, RECEIPT, SIGNATURE, WEIGHTS, pieces
from lora_chat.sharing.model_card import write_parcel_card
from lora_chat.sharing.parcel import settings_of, write_config
from lora_chat.sharing.receipt import MemberReceipt, Receipt, write_receipt
from lora_chat.sharing.signature import public_key_of, sign
from lora_chat.system.atomic_write import file_written_whole

UNSEALED = "0" * 64
"""The digest of a receipt that is not finished."""


def seal(draft: Receipt, weights: bytes, key: Path | None = None) -> dict[str, bytes]:
    """All members of a parcel; without a key the same facts give the same bytes.

    Raises RecipeError for a key that cannot sign, ValueError for what is too large for a parcel.
    """
    signer = public_key_of(key) if key else None
    settings = settings_of(draft)
    config = plain_config(settings, draft.base.base, draft.base.revision)
    portability = report_portability(settings, draft.precision.mode, draft.architecture)
    members = {
        CONFIG: write_config(config),
        WEIGHTS: weights,
        CARD: write_parcel_card(draft, portability).encode("utf-8"),
    }
    digests = {
        name: MemberReceipt(size=len(body), sha256=hashlib.sha256(body).hexdigest()) for name, body in members.items()
    }
    final = draft.model_copy(update={"members": digests, "signer": signer})
    facts = final.model_dump(mode="json")
    del facts["digest"]
    members[RECEIPT] = write_receipt(facts)
    if large := [name for name, body in members.items() if len(body) > LARGEST[name]]:
        raise ValueError(f"{large[0]} has {len(members[large[0]]):,} bytes; a parcel holds {LARGEST[large[0]]:,}")
    if key:
        members[SIGNATURE] = sign({name: members[name] for name in MEMBERS}, key)
    return members


def write_parcel(members: Mapping[str, bytes], to: Path, check: Callable[[Path], object]) -> None:
    """Write the file, have it checked as a receiver would, and only then give it its name.

    Raises RecipeError where another file stands already.
    """
    if to.exists() and (not to.is_file() or not _holds(to, members)):
        raise RecipeError(f"{to} is there already, and is another file; name another with --out.")
    with file_written_whole(to, "the parcel", shared=True) as file:
        for piece in pieces(members):
            file.write(piece)
        file.flush()
        check(Path(file.name))


def _holds(path: Path, members: Mapping[str, bytes]) -> bool:
    if path.stat().st_size != sum(map(len, pieces(members))):
        return False
    with path.open("rb") as file:
        return all(file.read(len(piece)) == piece for piece in pieces(members))
