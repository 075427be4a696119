"""The lineage of an adapter: the adapters that its training started from, each with the digests of what it learned."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Annotated, Literal, Protocol

from pydantic import Field, JsonValue, StringConstraints

from lora_chat.config.base import StrictModel
from lora_chat.sharing.figures import BASE_NAME_PATTERN, NAME_PATTERN, Loss, Proportion, Sha256Digest

MAX_GENERATIONS = 64
Inheritance = Literal["start", "merge_first"]
"""`start`: training continued the parent's tensors. `merge_first`: the parent was merged into the base of training."""
INHERITANCE_TITLES: Mapping[Inheritance, str] = {
    "start": "continued from",
    "merge_first": "began on the base merged with",
}
_SETTING_SECTIONS = ("quantization", "adapter", "training")
_UNSTABLE_SETTINGS = ("start", "stack", "memory")
"""Settings of these sections that describe a machine, or name a file."""


class ParentReceipt(StrictModel):
    """One parent: digests of its weights, its settings, its base, and of the data that it was trained on."""

    how: Inheritance
    name: Annotated[str, StringConstraints(pattern=NAME_PATTERN)]
    adapter: Sha256Digest
    """SHA-256 of `adapter_model.safetensors` as a parcel has it."""
    config: Sha256Digest
    """SHA-256 of `adapter_config.json` as a parcel has it."""
    base: Annotated[str, StringConstraints(pattern=BASE_NAME_PATTERN)]
    revision: Annotated[str, StringConstraints(pattern=NAME_PATTERN)] | None = None
    weights: Sha256Digest
    """SHA-256 of the weights of the parent's base."""
    files: Sha256Digest | None = None
    tokenizer: Sha256Digest
    chat_template: Sha256Digest
    mode: Literal["4bit", "8bit", "none"] | None = None
    """Quantization of the base in the parent's training; None if unknown."""
    rows: Sha256Digest | None = None
    """SHA-256 of the token ids and labels of its training data; None if unknown, as for adapters of other tools."""
    held_out: Sha256Digest | None = None
    """SHA-256 of its validation files; None if unknown."""
    settings: Sha256Digest | None = None
    """SHA-256 of the settings of its recipe that decide the training; None if unknown."""

    @property
    def title(self) -> str:
        """Return the relation and the name, as reports show them."""
        return f"{INHERITANCE_TITLES[self.how]} {self.name}"


Lineage = Annotated[tuple[ParentReceipt, ...], Field(min_length=1, max_length=MAX_GENERATIONS)]
"""The parents of an adapter, the nearest first."""


class ThreeLosses(StrictModel):
    """Validation loss of base, parent and child, in nats per supervised token."""

    base: Loss | None
    """Loss of the base before both adapters; None if that base was not on the machine."""
    parent: Loss
    child: Loss


class ThreeShares(StrictModel):
    """Share of questions with a correct answer of base, parent and child, 0 to 1."""

    base: Proportion | None
    parent: Proportion
    child: Proportion
    questions: Annotated[int, Field(ge=1, le=10**6)]


class GenerationFigures(StrictModel):
    """The measurements of base, parent and child on one validation set."""

    dialogues: Annotated[int, Field(ge=1, le=2**53)]
    validation_loss: ThreeLosses
    facts: ThreeShares | None = None


class GenerationsReceipt(StrictModel):
    """Base, parent and child compared on the child's validation set, and on the parent's if it was available."""

    child_data: GenerationFigures
    parent_data: GenerationFigures | None = None


def make_generations_receipt(figures: Mapping[str, object]) -> GenerationsReceipt | None:
    """Return the figures of a run in the form of a receipt; None if a loss is not finite."""
    summary: dict[str, object] = {}
    for name in GenerationsReceipt.model_fields:
        data = figures.get(name)
        if isinstance(data, Mapping):
            facts = data.get("facts")
            questions = {"questions": data.get("questions")}
            summary[name] = {
                "dialogues": data.get("dialogues"),
                "validation_loss": data.get("validation_loss"),
                "facts": {**facts, **questions} if isinstance(facts, Mapping) else None,
            }
    try:
        return GenerationsReceipt.model_validate(summary)
    except ValueError:
        return None


class BoundBase(Protocol):
    """The digests of an adapter's base that its lineage must agree with."""

    @property
    def weights(self) -> str: ...
    @property
    def files(self) -> str | None: ...
    @property
    def tokenizer(self) -> str: ...
    @property
    def chat_template(self) -> str: ...


def check_lineage(lineage: Sequence[ParentReceipt], base: BoundBase, adapter: str | None) -> None:
    """Raise ValueError if a lineage repeats an adapter or contradicts the base of the adapter with digest `adapter`."""
    digests = [*([adapter] if adapter else []), *(parent.adapter for parent in lineage)]
    if len(set(digests)) < len(digests):
        raise ValueError("the lineage is a cycle: an adapter is its own ancestor")
    child = base
    for parent in lineage:
        if parent.how == "start" and not _is_same_base(parent, child):
            raise ValueError(f"the lineage contradicts itself: {parent.name} has another base than its child")
        if parent.how == "merge_first" and parent.weights == child.weights:
            raise ValueError(f"the lineage contradicts itself: {parent.name} was merged, but the base is unchanged")
        child = parent


def _is_same_base(parent: BoundBase, child: BoundBase) -> bool:
    """Return whether two adapters have the base, and the chat template, of one training that continues another."""
    same_files = parent.files is None or child.files is None or parent.files == child.files
    parts = [(side.weights, side.tokenizer, side.chat_template) for side in (parent, child)]
    return parts[0] == parts[1] and same_files


def digest_settings(recipe: Mapping[str, JsonValue]) -> str | None:
    """Return the SHA-256 of the settings of a public recipe that decide the training; None if it has none.

    Settings at their defaults do not count, because a later version may add settings.
    """
    from lora_chat.config.recipe import AdapterSection, QuantizationSection, TrainingSection

    sections: dict[str, type[StrictModel]] = dict(
        zip(_SETTING_SECTIONS, (QuantizationSection, AdapterSection, TrainingSection), strict=True)
    )
    chosen: dict[str, JsonValue] = {}
    for name, section in sections.items():
        values = recipe.get(name)
        if not isinstance(values, dict):
            return None
        defaults = section().model_dump(mode="json")
        chosen[name] = {
            key: value
            for key, value in values.items()
            if key not in _UNSTABLE_SETTINGS and (key not in defaults or defaults[key] != value)
        }
    return hashlib.sha256(json.dumps(chosen, sort_keys=True).encode("ascii")).hexdigest()
