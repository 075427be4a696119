"""What a parcel says of itself: to what it is bound, how it came about, what was measured, and every digest."""

import hashlib
import json
import re
from typing import Annotated, Any, Literal

from pydantic import Field, JsonValue, StringConstraints, ValidationError, model_validator
from typing_extensions import Self

from lora_chat.config.base import Seed, StrictModel
from lora_chat.config.recipe import AdapterSection
from lora_chat.errors import IntegrityError
from lora_chat.models.identity import Identity
from lora_chat.sharing.figures import (
    ComparisonReceipt,
    Count,
    DataReceipt,
    ParityReceipt,
    Sha256Digest,
    ShortText,
    TrainingReceipt,
)
from lora_chat.system.strict_json import parse_strict_json

RECEIPT_VERSION = 2
NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,95}$"
BASE_NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,95}(/[A-Za-z0-9][A-Za-z0-9._-]{0,95})?$"
LICENSE_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9.+-]{0,63}$"
PACKAGE_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$"
PACKAGE_VERSION_PATTERN = (
    r"^[0-9]+(\.[0-9]+)*((a|b|c|rc|alpha|beta|pre|preview)[._-]?[0-9]*)?([._-]?(post|rev|r)[._-]?[0-9]*|-[0-9]+)?"
    r"([._-]?dev[._-]?[0-9]*)?(\+([a-z]*[0-9][a-z0-9]*|cpu|xpu|cuda|mps|local)?([._-][a-z]*[0-9][a-z0-9]*)*)?$"
)
"""As PEP 440 has it, without local parts of letters alone: `1+evil.com` would become a link in some cards."""
PUBLIC_KEY_PATTERN = r"^-----BEGIN PUBLIC KEY-----\n[A-Za-z0-9+/=\n]{1,3000}-----END PUBLIC KEY-----\n$"


class BaseReceipt(Identity):
    """The base, tokenizer and template that the adapter belongs to; no folder stands in its name."""

    base: Annotated[str, StringConstraints(pattern=BASE_NAME_PATTERN)]
    revision: Annotated[str, StringConstraints(pattern=NAME_PATTERN)] | None
    weights: Sha256Digest
    tokenizer: Sha256Digest
    chat_template: Sha256Digest
    system: Annotated[str, StringConstraints(max_length=2**16)] | None = None
    files: Sha256Digest | None = None
    config: dict[ShortText, JsonValue] | None = None
    generation: dict[ShortText, JsonValue] | None = None
    tokenizer_parts: dict[ShortText, JsonValue] | None = None
    stops: Annotated[tuple[int, ...], Field(max_length=10_000)] | None = None


class PrecisionReceipt(StrictModel):
    """How the base was held in training; another precision is another function."""

    mode: Literal["4bit", "8bit", "none"]
    double_quantization: bool
    dtype: Literal["bfloat16", "float32"]


class MemberReceipt(StrictModel):
    """One of the other members."""

    size: Count
    sha256: Sha256Digest


class Receipt(StrictModel):
    """The whole of it. A later version may add fields under another number; these are read for ever.

    Version 2 states of the base all that shapes its function; version 1 states three digests.
    """

    format: Literal["lora_chat parcel"]
    version: Literal[1, 2]
    name: Annotated[str, StringConstraints(pattern=NAME_PATTERN)]
    license: Annotated[str, StringConstraints(pattern=LICENSE_PATTERN)] | None
    base: BaseReceipt
    precision: PrecisionReceipt
    architecture: Annotated[str, StringConstraints(pattern=NAME_PATTERN)] | None
    """The `model_type` of the base's config."""
    adapter: AdapterSection
    parameters: Count
    recipe: dict[ShortText, JsonValue]
    data: DataReceipt
    seed: Seed
    versions: Annotated[
        dict[
            Annotated[str, StringConstraints(pattern=PACKAGE_PATTERN)],
            Annotated[str, StringConstraints(pattern=PACKAGE_VERSION_PATTERN, max_length=64)],
        ],
        Field(max_length=100),
    ]
    training: TrainingReceipt
    comparison: ComparisonReceipt | None
    proof: ParityReceipt
    chat_template: Annotated[str, StringConstraints(max_length=2**17)] | None
    """Its text where neither the base nor lora_chat has it; shown before it is used."""
    signer: Annotated[str, StringConstraints(pattern=PUBLIC_KEY_PATTERN)] | None
    """The public key, as PEM, of whoever signed the parcel."""
    members: dict[ShortText, MemberReceipt]
    digest: Sha256Digest
    """sha256 of this receipt without this field."""

    @model_validator(mode="after")
    def _check_consistency(self) -> Self:
        if self.version != self.base.version:
            raise ValueError(f"a receipt of version {self.version} holds a base of version {self.base.version}")
        found, kept = self.comparison, self.data.validation_dialogues
        if found and found.validation_dialogues > kept:
            raise ValueError(f"compared on {found.validation_dialogues} dialogues, and {kept} were held out")
        base = self.recipe.get("base", {})
        if not isinstance(base, dict) or base.get("name", self.base.base) != self.base.base:
            raise ValueError("the recipe names another base")
        return self


def encode_receipt(facts: dict[str, Any]) -> bytes:
    """Write a receipt in the one way there is: keys sorted, ASCII, with its digest. `open_parcel` checks the facts."""
    return _encode_canonical(facts | {"digest": _digest(facts)})


def decode_receipt(raw: bytes) -> Receipt:
    """Raises IntegrityError for anything that `encode_receipt` would not write."""
    try:
        facts = parse_strict_json(raw.decode("ascii"))
        if not isinstance(facts, dict):
            raise ValueError("is no object")
        number = facts.get("version")
        if type(number) is not int:  # true is 1 to a schema
            raise ValueError("has no version")
        if facts.get("format") == "lora_chat parcel" and number > RECEIPT_VERSION:
            raise IntegrityError(
                f"the receipt has version {number}, this lora_chat reads up to {RECEIPT_VERSION}: update it"
            )
        if _encode_canonical(facts) != raw:
            raise ValueError("is not written as lora_chat writes it")
        stated = facts.pop("digest", None)
        if stated != _digest(facts):
            raise ValueError("does not have the digest that it states")
        return Receipt.model_validate_json(raw)
    except ValidationError as error:
        raise IntegrityError(f"the receipt's {format_validation_error(error)}") from error
    except (ValueError, RecursionError) as error:  # UnicodeDecodeError is one
        raise IntegrityError(f"the receipt {str(error)[:200]}") from error


def format_validation_error(error: ValueError) -> str:
    """The first thing that is wrong, in one line of ASCII."""
    if not isinstance(error, ValidationError):
        return ascii(str(error)[:200])[1:-1]
    first = error.errors()[0]
    return ascii(f"{'.'.join(map(str, first['loc']))[:100]}: {first['msg'][:200]}")[1:-1]


def _digest(facts: dict[str, Any]) -> str:
    return hashlib.sha256(_encode_canonical(facts)).hexdigest()


def _encode_canonical(facts: dict[str, Any]) -> bytes:
    return (json.dumps(facts, indent=1, sort_keys=True, allow_nan=False) + "\n").encode("ascii")


def public_base_name(base: str) -> str:
    """A base's name without the folders of the machine it was trained on."""
    if re.fullmatch(BASE_NAME_PATTERN, base):
        return base
    last = re.split(r"[/\\]", base.rstrip("/\\"))[-1]
    return re.sub(r"[^A-Za-z0-9._-]+", "-", last).strip(".-_")[:96] or "base"
