"""Strict model of `receipt.json` (base, training, measured figures, digests of the members), and its encoding."""

import hashlib
import json
import re
from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import (
    Field,
    JsonValue,
    SerializerFunctionWrapHandler,
    StringConstraints,
    ValidationError,
    model_serializer,
    model_validator,
)
from typing_extensions import Self

from lora_chat.config.base import Seed, StrictModel
from lora_chat.config.recipe import AdapterSection
from lora_chat.config.stored_quantization import QuantizationCoverage, StoredQuantization
from lora_chat.errors import IntegrityError
from lora_chat.export.parity.reference import ModelReference
from lora_chat.models.identity import Identity
from lora_chat.sharing.evaluation_receipt import EvaluationReceipt
from lora_chat.sharing.figures import BASE_NAME_PATTERN as BASE_NAME_PATTERN
from lora_chat.sharing.figures import (
    NAME_PATTERN,
    ComparisonReceipt,
    Count,
    DataReceipt,
    ParityReceipt,
    Sha256Digest,
    ShortText,
    TrainingReceipt,
)
from lora_chat.sharing.hub_metadata import HubReceipt
from lora_chat.sharing.judgement_receipt import JudgementReceipt
from lora_chat.sharing.lineage import GenerationsReceipt, Lineage, check_lineage
from lora_chat.system.strict_json import parse_strict_json

RECEIPT_VERSION = 6
_VERSION_3_FIELDS = ("lineage", "generations")
"""Fields that receipts of versions 1 and 2 do not have."""
_VERSION_4_FIELDS = ("evaluation",)
"""Fields that receipts of versions 1 to 3 do not have."""
_VERSION_5_FIELDS = ("reference", "judgement")
"""Fields of versions 5 and 6, which are only written with a value; version 5 has at least one of them."""
_VERSION_6_FIELDS = ("hub",)
"""Fields that receipts of versions 1 to 5 do not have."""
_ADAPTER_SETTINGS = ("rank", "alpha", "dropout", "target_modules", "variant")
"""Settings of an adapter in every receipt. Others are only written if they have a value, as versions 1 and 2 are."""
LICENSE_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9.+-]{0,63}$"
PACKAGE_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$"
PACKAGE_VERSION_PATTERN = (
    r"^[0-9]+(\.[0-9]+)*((a|b|c|rc|alpha|beta|pre|preview)[._-]?[0-9]*)?([._-]?(post|rev|r)[._-]?[0-9]*|-[0-9]+)?"
    r"([._-]?dev[._-]?[0-9]*)?(\+([a-z]*[0-9][a-z0-9]*|cpu|xpu|cuda|mps|local)?([._-][a-z]*[0-9][a-z0-9]*)*)?$"
)
"""Version in PEP 440 without local parts of letters only, because some cards would turn `1+evil.com` into a link."""
PUBLIC_KEY_PATTERN = r"^-----BEGIN PUBLIC KEY-----\n[A-Za-z0-9+/=\n]{1,3000}-----END PUBLIC KEY-----\n$"


class BaseReceipt(Identity):
    """The base, tokenizer and chat template that the adapter belongs to. The name of the base contains no folder."""

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
    """Precision of the base in training. With another precision the model computes another function."""

    mode: Literal["4bit", "8bit", "none"]
    double_quantization: bool
    dtype: Literal["bfloat16", "float16", "float32"]
    stored: StoredQuantization | None = None
    """Quantization of the base's own files."""
    coverage: QuantizationCoverage | None = None
    """Number of weights that the mode quantizes."""

    @model_validator(mode="after")
    def _check_mode(self) -> Self:
        """Raise ValueError if the files of the base have another mode than the base in training."""
        if self.stored is not None and self.stored.mode != self.mode:
            raise ValueError(f"mode {self.mode} for a base whose files are in {self.stored.mode}")
        return self

    @model_serializer(mode="wrap")
    def _leave_out_unknown(self, handler: SerializerFunctionWrapHandler) -> dict[str, JsonValue]:
        """Return the fields without the later ones that have no value, as older versions wrote them."""
        fields: dict[str, JsonValue] = handler(self)
        return {key: value for key, value in fields.items() if value is not None}


class MemberReceipt(StrictModel):
    """Size and digest of another member of the parcel."""

    size: Count
    sha256: Sha256Digest


class Receipt(StrictModel):
    """The content of `receipt.json`.

    Version 2 identifies everything of the base that decides its outputs; version 1 has three digests. Version 3 is
    version 2 with the lineage of an adapter that has parents. Version 4 has the verdict of the comparison with all its
    figures, and may have a lineage; runs of earlier versions of lora_chat are packed without a verdict in version 2 or
    3. Version 5 is version 4 with outputs of the adapted model or human votes; verdict and lineage are there if the run
    has them. Version 6 is any of the earlier ones with metadata for the hub, which its card begins with; the parts of
    versions 3 to 5 are there if the run has them. A later version may add fields under another number. Earlier versions
    must always remain readable.
    """

    format: Literal["lora_chat parcel"]
    version: Literal[1, 2, 3, 4, 5, 6]
    name: Annotated[str, StringConstraints(pattern=NAME_PATTERN)]
    license: Annotated[str, StringConstraints(pattern=LICENSE_PATTERN)] | None
    base: BaseReceipt
    precision: PrecisionReceipt
    architecture: Annotated[str, StringConstraints(pattern=NAME_PATTERN)] | None
    """`model_type` in the config of the base."""
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
    """Text of the chat template if neither the base nor lora_chat has it; it is shown before it is used."""
    signer: Annotated[str, StringConstraints(pattern=PUBLIC_KEY_PATTERN)] | None
    """Public key of the signer, as PEM."""
    members: dict[ShortText, MemberReceipt]
    digest: Sha256Digest
    """SHA-256 of this receipt without this field."""
    lineage: Lineage | None = None
    """The adapters that this one was trained on from, the nearest first."""
    generations: GenerationsReceipt | None = None
    """Base, parent and child compared; None if it was not measured."""
    evaluation: EvaluationReceipt | None = None
    """The verdict of the comparison of base and adapted model, with its figures."""
    reference: ModelReference | None = None
    """Outputs of the adapted model for built-in questions, by which a receiver recognises the loaded model."""
    judgement: JudgementReceipt | None = None
    """Votes of people on the replies of this adapter and of another model; None without any."""
    hub: HubReceipt | None = None
    """Metadata for the hub that does not follow from the rest."""

    @model_validator(mode="after")
    def _check_consistency(self) -> Self:
        """Raise ValueError if parts of the receipt contradict one another."""
        if min(self.version, 2) != self.base.version:
            raise ValueError(f"a receipt of version {self.version} has a base of version {self.base.version}")
        self._check_lineage()
        if self.adapter.start is not None:
            raise ValueError("the lineage of an adapter is not one of its settings")
        if self.version < 5 and (self.evaluation is not None) != (self.version == 4):
            raise ValueError("a receipt has a verdict in version 4 or 5, and only there")
        has_version_5_fields = any(getattr(self, name) is not None for name in _VERSION_5_FIELDS)
        if self.version < 6 and has_version_5_fields != (self.version == 5):
            raise ValueError("a receipt has human votes or a reference in version 5, and only there")
        self._check_judgement()
        self._check_hub()
        comparison, held_out = self.comparison, self.data.validation_dialogues
        if self.evaluation and self.evaluation.set == "test":
            held_out = self.evaluation.dialogues
        if self.evaluation and comparison and not _states_same_figures(comparison, self.evaluation):
            raise ValueError("comparison and evaluation have different figures")
        if comparison and comparison.validation_dialogues > held_out:
            raise ValueError(f"compared on {comparison.validation_dialogues} dialogues, but {held_out} were held out")
        base = self.recipe.get("base", {})
        if not isinstance(base, dict) or base.get("name", self.base.base) != self.base.base:
            raise ValueError("the recipe names another base")
        return self

    def _check_judgement(self) -> None:
        """Raise ValueError if the votes are not on the adapter of this parcel."""
        if self.judgement is None:
            return
        weights = self.members.get("adapter_model.safetensors")
        if weights is not None and self.judgement.a.adapter != weights.sha256:
            raise ValueError("the votes are on another adapter")

    def _check_hub(self) -> None:
        """Raise ValueError if the metadata contradicts the rest, or does not belong to the version."""
        if (self.hub is not None) != (self.version == 6):
            raise ValueError("a receipt has metadata for the hub in version 6, and only there")
        if self.hub and "/" in self.base.base and self.hub.base_model != self.base.base:
            raise ValueError("the metadata for the hub names another base")

    def _check_lineage(self) -> None:
        """Raise ValueError if the lineage has a cycle or contradicts the rest, or does not belong to the version."""
        if self.version < 4 and (self.lineage is not None) != (self.version == 3):
            raise ValueError("a receipt has a lineage in version 3, and only there")
        if self.lineage is None:
            if self.generations is not None:
                raise ValueError("it compares with a parent, and names none")
            return
        weights = self.members.get("adapter_model.safetensors")
        check_lineage(self.lineage, self.base, weights.sha256 if weights else None)

    @model_serializer(mode="wrap")
    def _serialize_version_fields(self, handler: SerializerFunctionWrapHandler) -> dict[str, JsonValue]:
        """Return the fields as each version writes them."""
        fields: dict[str, JsonValue] = handler(self)
        adapter = fields["adapter"]
        assert isinstance(adapter, dict)
        default = AdapterSection().model_dump(mode="json")
        fields["adapter"] = {
            key: value for key, value in adapter.items() if key in _ADAPTER_SETTINGS or value != default.get(key)
        }
        later = {3: _VERSION_3_FIELDS, 4: _VERSION_4_FIELDS, 5: _VERSION_5_FIELDS, 6: _VERSION_6_FIELDS}
        newer = {name for version, names in later.items() if version > self.version for name in names}
        newer |= {name for name in _VERSION_5_FIELDS if fields[name] is None}
        return {key: value for key, value in fields.items() if key not in newer}


def _states_same_figures(comparison: ComparisonReceipt, evaluation: EvaluationReceipt) -> bool:
    """Return whether the figures that both have are equal."""
    pairs = {"validation_loss": comparison.validation_loss, "facts": comparison.facts}
    return all(
        (pair.base, pair.adapted) == (figure.base, figure.adapted)
        for name, pair in pairs.items()
        if pair is not None and (figure := evaluation.figures.get(name)) is not None
    )


def encode_receipt(fields: Mapping[str, JsonValue]) -> bytes:
    """Encode a receipt in its canonical form: sorted keys, ASCII, with its digest. `open_parcel` checks the fields."""
    return _encode_canonical({**fields, "digest": _digest(fields)})


def decode_receipt(raw: bytes) -> Receipt:
    """Decode a receipt. Raises IntegrityError for bytes that `encode_receipt` would not write."""
    try:
        fields = parse_strict_json(raw.decode("ascii"))
        if not isinstance(fields, dict):
            raise ValueError("is not a JSON object")
        version = fields.get("version")
        if type(version) is not int:  # a schema accepts `true` as 1
            raise ValueError("has no version")
        if fields.get("format") == "lora_chat parcel" and version > RECEIPT_VERSION:
            raise IntegrityError(f"the receipt has version {version}, above {RECEIPT_VERSION}. Fix: update lora_chat")
        if _encode_canonical(fields) != raw:
            raise ValueError("is not in the canonical form that lora_chat writes")
        stated = fields.pop("digest", None)
        if stated != _digest(fields):
            raise ValueError("has another digest than it states")
        return Receipt.model_validate_json(raw)
    except ValidationError as error:
        raise IntegrityError(f"the receipt's {format_validation_error(error)}") from error
    except (ValueError, RecursionError) as error:  # UnicodeDecodeError is one
        raise IntegrityError(f"the receipt {str(error)[:200]}") from error


def format_validation_error(error: ValueError) -> str:
    """Format the first problem as one line of ASCII."""
    if not isinstance(error, ValidationError):
        return ascii(str(error)[:200])[1:-1]
    first = error.errors()[0]
    return ascii(f"{'.'.join(map(str, first['loc']))[:100]}: {first['msg'][:200]}")[1:-1]


def _digest(fields: Mapping[str, JsonValue]) -> str:
    """Return the SHA-256 of the canonical form."""
    return hashlib.sha256(_encode_canonical(fields)).hexdigest()


def _encode_canonical(fields: Mapping[str, JsonValue]) -> bytes:
    """Encode JSON with sorted keys in ASCII."""
    return (json.dumps(dict(fields), indent=1, sort_keys=True, allow_nan=False) + "\n").encode("ascii")


def public_base_name(base: str) -> str:
    """Return the name of a base without the folders of the machine that trained on it."""
    if re.fullmatch(BASE_NAME_PATTERN, base):
        return base
    last = re.split(r"[/\\]", base.rstrip("/\\"))[-1]
    return re.sub(r"[^A-Za-z0-9._-]+", "-", last).strip(".-_")[:96] or "base"
