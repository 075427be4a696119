"""Verification of a parcel's lineage: its consistency, and each parent that the user has."""

from collections.abc import Iterator, Sequence

from lora_chat.errors import IntegrityError
from lora_chat.pipeline.parent import Parent, find_parent
from lora_chat.sharing.lineage import ParentReceipt
from lora_chat.sharing.parcel import Parcel, ParcelCheck

_COMPARED_DATA = ("rows", "held_out", "settings")
"""Fields of a parent that are compared if both sides know them."""


def check_parcel_lineage(parcel: Parcel, sources: Sequence[str]) -> Iterator[ParcelCheck]:
    """Yield the checks of a parcel's lineage; `sources` are runs, parcels or folders of its parents in any order."""
    lineage = parcel.receipt.lineage or ()
    if not lineage:
        if sources:
            yield ParcelCheck("lineage", "--parent was given, but the receipt names no parent", False)
        return
    generations = "generation" if len(lineage) == 1 else "generations"
    chain = ", ".join(parent.title for parent in lineage)
    yield ParcelCheck("lineage", f"{len(lineage)} {generations} without contradiction: {chain}", True)
    confirmed: set[int] = set()
    for source in sources:
        check, number = _check_parent(lineage, source)
        yield check
        confirmed |= {number} if number is not None else set()
    missing = [parent for number, parent in enumerate(lineage) if number not in confirmed]
    if missing:
        names = ", ".join(f"{parent.name} (sha256 {parent.adapter[:12]})" for parent in missing)
        yield ParcelCheck("parents", f"stated by the sender only: {names}; give them with --parent", None)
    else:
        yield ParcelCheck("parents", "all parents are those of the lineage", True, ("lineage",))


def _check_parent(lineage: Sequence[ParentReceipt], source: str) -> tuple[ParcelCheck, int | None]:
    """Return the check of one parent, and its number in the lineage if it belongs to it."""
    name = f"parent {source}"
    try:
        parent = find_parent(source, "merge_first")  # settings that no recipe can express are no contradiction
    except IntegrityError as error:
        return ParcelCheck(name, str(error), False), None
    number = next((n for n, stated in enumerate(lineage) if stated.adapter == parent.record.adapter), None)
    if number is None:
        return ParcelCheck(name, "it is not in the lineage: no parent has the digest of its weights", False), None
    if differing := _list_differences(lineage, number, parent):
        return ParcelCheck(name, f"the lineage states another {' and '.join(differing)} than it has", False), None
    return ParcelCheck(name, f"it is {lineage[number].name}, number {number + 1} of the lineage", True), number


def _list_differences(lineage: Sequence[ParentReceipt], number: int, parent: Parent) -> list[str]:
    """Return the parts of a parent that its entry in the lineage states otherwise."""
    stated, identity = lineage[number], parent.stored.identity
    differing: list[str] = []
    if identity is not None:
        entry = parent.make_lineage(identity)[0]
        fields = ("config", "base", "revision", "weights", "tokenizer", "chat_template")
        differing += [name.replace("_", " ") for name in fields if getattr(stated, name) != getattr(entry, name)]
    for name in (*_COMPARED_DATA, "mode"):
        present = (
            parent.record.precision and parent.record.precision.mode if name == "mode" else getattr(parent.record, name)
        )
        if present is not None and getattr(stated, name) is not None and getattr(stated, name) != present:
            differing.append(
                {"rows": "training data", "held_out": "held-out data", "mode": "precision"}.get(name, name)
            )
    # A folder outside a run does not state its own parents.
    knows_parents = parent.record.rows is not None or parent.record.settings is not None
    if knows_parents and _digests(parent.record.ancestors) != _digests(lineage[number + 1 :]):
        differing.append("list of ancestors")
    return differing


def _digests(lineage: Sequence[ParentReceipt]) -> list[tuple[str, str]]:
    """Return how each parent was used, and the digest of its weights."""
    return [(parent.how, parent.adapter) for parent in lineage]
