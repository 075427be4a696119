"""What a parcel says of itself: to what it is bound, how it came about, what was measured, and every digest."""

import hashlib
import json
import re
from typing import Annotated, Any, Literal

from pydantic import Field, JsonValue, StringConstraints, ValidationError

from lora_chat.errors import IntegrityError
from lora_chat.models.identity import Identity
from lora_chat.planning.recipe import AdapterSection
from lora_chat.planning.section import Section, Seed
from lora_chat.system.strict_json import parse_json

VERSION = 1
NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,95}$"
BASE_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,95}(/[A-Za-z0-9][A-Za-z0-9._-]{0,95})?$"
LICENSE = r"^[A-Za-z0-9][A-Za-z0-9.+-]{0,63}$"
Digest = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
Short = Annotated[str, StringConstraints(max_length=200)]
Count = Annotated[int, Field(ge=0)]


class BoundBase(Identity):
    """The base, tokenizer and template that the adapter belongs to; no folder stands in its name."""

    base: Annotated[str, StringConstraints(pattern=BASE_NAME)]
    revision: Annotated[str, StringConstraints(pattern=NAME)] | None
    weights: Digest
    tokenizer: Digest
    chat_template: Digest
    system: Annotated[str, StringConstraints(max_length=2**16)] | None = None


class BoundPrecision(Section):
    """How the base was held in training; another precision is another function."""

    mode: Literal["4bit", "8bit", "none"]
    double_quantization: bool
    dtype: Literal["bfloat16", "float32"]


class SourceReceipt(Section):
    """The ledger of one source: what became of its lines, in figures."""

    name: Short
    """Without its folder."""
    weight: Annotated[float, Field(gt=0)]
    formats: tuple[Short, ...]
    counts: dict[Short, Count]


class DataReceipt(Section):
    """What was trained on and measured with, never its words."""

    rows: Digest | None
    """sha256 of the token ids and labels in their order; None for a run of an older version."""
    held_out: Digest | None
    """sha256 of the held-out dialogues as the run keeps them; None where it keeps none."""
    train_dialogues: Count
    train_rows: Count
    validation_dialogues: Count
    duplicates: Count
    sources: Annotated[tuple[SourceReceipt, ...], Field(max_length=10_000)]
    audit: dict[Short, Count]
    """How often each kind of finding was seen; what was seen stays with the run."""


class TrainingReceipt(Section):
    """What the training took."""

    steps: Count
    planned_steps: Count | None
    supervised_tokens: Count
    seconds: Annotated[float, Field(ge=0)]


class Both(Section):
    """One measure of the base and of the adapted model."""

    base: float
    adapted: float


class FactsReceipt(Both):
    """Share of questions answered right, 0 to 1."""

    questions: Annotated[int, Field(ge=1)]


class ComparisonReceipt(Section):
    """Base against adapted on what was held out."""

    validation_loss: Both
    """Nats per supervised token."""
    validation_dialogues: Count
    facts: FactsReceipt | None


class ProofReceipt(Section):
    """The adapter opened by plain PEFT, against the adapted model as it was trained (`delivery/proof.py`)."""

    what: Short
    reader: Short
    dialogues: Count
    tokens: Count
    mean_kl: float
    largest_kl: float
    largest_logit_difference: float
    same_top_token: float
    control_kl: float
    loss_adapted: float
    loss_delivered: float
    replies: Count
    reply_tokens: Count
    equal_replies: float
    failures: tuple[Short, ...]
    accepted: bool


class MemberReceipt(Section):
    """One of the other members."""

    size: Count
    sha256: Digest


class Receipt(Section):
    """The whole of it. A later version may add fields under another number; this one is read for ever."""

    format: Literal["lora_chat parcel"]
    version: Literal[1]
    name: Annotated[str, StringConstraints(pattern=NAME)]
    license: Annotated[str, StringConstraints(pattern=LICENSE)] | None
    base: BoundBase
    precision: BoundPrecision
    architecture: Annotated[str, StringConstraints(pattern=NAME)] | None
    """The `model_type` of the base's config."""
    adapter: AdapterSection
    parameters: Count
    recipe: dict[Short, JsonValue]
    data: DataReceipt
    seed: Seed
    versions: dict[Short, Short]
    training: TrainingReceipt
    comparison: ComparisonReceipt | None
    proof: ProofReceipt
    chat_template: Annotated[str, StringConstraints(max_length=2**17)] | None
    """Its text where neither the base nor lora_chat has it; shown before it is used."""
    signer: Annotated[str, StringConstraints(max_length=2**12)] | None
    """The public key, as PEM, of whoever signed the parcel."""
    members: dict[Short, MemberReceipt]
    digest: Digest
    """sha256 of this receipt without this field."""


def write_receipt(facts: dict[str, Any]) -> bytes:
    """The one way to write a receipt: keys sorted, ASCII, with the digest of the rest. ValueError for bad facts."""
    text = _canonical(facts | {"digest": _digest(facts)})
    Receipt.model_validate_json(text)
    return text


def read_receipt(raw: bytes) -> Receipt:
    """Raises IntegrityError for anything that `write_receipt` would not write."""
    try:
        facts = parse_json(raw.decode("ascii"))
        if not isinstance(facts, dict):
            raise ValueError("is no object")
        number = facts.get("version")
        if type(number) is not int:  # true is 1 to a schema
            raise ValueError("has no version")
        if facts.get("format") == "lora_chat parcel" and number > VERSION:
            raise IntegrityError(f"the receipt has version {number}, this lora_chat reads up to {VERSION}: update it")
        if _canonical(facts) != raw:
            raise ValueError("is not written as lora_chat writes it")
        stated = facts.pop("digest", None)
        if stated != _digest(facts):
            raise ValueError("does not have the digest that it states")
        return Receipt.model_validate_json(raw)
    except ValidationError as error:
        raise IntegrityError(f"the receipt's {explain(error)}") from error
    except (ValueError, RecursionError) as error:  # UnicodeDecodeError is one
        raise IntegrityError(f"the receipt {str(error)[:200]}") from error


def explain(error: ValueError) -> str:
    """The first thing that is wrong, in one line of ASCII."""
    if not isinstance(error, ValidationError):
        return ascii(str(error)[:200])[1:-1]
    first = error.errors()[0]
    return ascii(f"{'.'.join(map(str, first['loc']))[:100]}: {first['msg'][:200]}")[1:-1]


def _digest(facts: dict[str, Any]) -> str:
    return hashlib.sha256(_canonical(facts)).hexdigest()


def _canonical(facts: dict[str, Any]) -> bytes:
    return (json.dumps(facts, indent=1, sort_keys=True, allow_nan=False) + "\n").encode("ascii")


def public_name(base: str) -> str:
    """A base's name without the folders of the machine it was trained on."""
    if re.fullmatch(BASE_NAME, base):
        return base
    last = re.split(r"[/\\]", base.rstrip("/\\"))[-1]
    return re.sub(r"[^A-Za-z0-9._-]+", "-", last).strip(".-_")[:96] or "base"
