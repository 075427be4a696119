"""Metadata that the Hugging Face hub reads at the top of a model card: base, data sets, languages and results.

The form is https://github.com/huggingface/hub-docs/blob/main/modelcard.md. Every value is a fixed word, a number, or a
name of a fixed alphabet in quotes, so that no name of a stranger becomes a setting of the hub. The results are the
figures of the sender: no field claims that somebody verified them.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated

from pydantic import Field, JsonValue, StringConstraints, model_validator
from typing_extensions import Self

from lora_chat.config.base import StrictModel
from lora_chat.evaluation.metrics import METRICS, MetricFigures
from lora_chat.sharing.figures import BASE_NAME_PATTERN, NAME_PATTERN

_REPOSITORY = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,95}/[A-Za-z0-9][A-Za-z0-9._-]{0,95}$"
LANGUAGE_PATTERN = r"^[a-z]{2,3}$"
"""ISO 639 code of two or three letters."""
HubModelId = Annotated[str, StringConstraints(pattern=_REPOSITORY)]
HubDatasetId = Annotated[str, StringConstraints(pattern=BASE_NAME_PATTERN)]
Language = Annotated[str, StringConstraints(pattern=LANGUAGE_PATTERN)]
_MAX_VALUE = 1e9
"""Largest figure in the results. The perplexity of a model that diverged is larger."""
_UNKNOWN_DATASET = "unknown"
"""Id of a data set that is not on the hub."""


@dataclass(frozen=True)
class _EmbeddedBase:
    """A base that comes with lora_chat and whose original is on the hub."""

    hub_id: str
    quantization: str
    """Type of the GGUF that the weights come from."""


_EMBEDDED_BASES = {"smollm2-135m-instruct": _EmbeddedBase("HuggingFaceTB/SmolLM2-135M-Instruct", "Q4_1")}
_METRIC_TYPES = {
    "validation_loss": "loss",
    "token_accuracy": "accuracy",
    "facts": "accuracy",
    "token_f1": "f1",
    "macro_precision": "precision",
    "macro_recall": "recall",
    "macro_f1": "f1",
    "rouge1": "rouge",
    "rouge2": "rouge",
    "rougeL": "rouge",
}
"""Type of a metric on the hub, if it is not its name here."""


class HubReceipt(StrictModel):
    """What the hub is told about an adapter beside its figures, as version 6 of the receipt has it."""

    base_model: HubModelId | None = None
    """Id of the base on the hub; None for a folder."""
    quantization: Annotated[str, StringConstraints(pattern=r"^[A-Z0-9_]{1,16}$")] | None = None
    """Type of the GGUF that the weights of an embedded base come from; None for weights as the hub has them."""
    datasets: Annotated[tuple[HubDatasetId, ...], Field(max_length=100)] = ()
    """Ids of the data sets of the hub that the adapter was trained on."""
    held_out: HubDatasetId | None = None
    """The data set of the hub that the held-out dialogues were taken from; None if they are of several, or of files."""
    languages: Annotated[tuple[Language, ...], Field(max_length=20)] = ()
    """ISO 639 codes, as the sender states them."""

    @model_validator(mode="after")
    def _check_consistency(self) -> Self:
        """Raise ValueError for repeated names, or if a part belongs to another that is missing."""
        for names in (self.datasets, self.languages):
            if len(set(names)) < len(names):
                raise ValueError("a data set or language is named twice")
        if self.held_out is not None and self.datasets != (self.held_out,):
            raise ValueError("the held-out dialogues are of another data set")
        if self.quantization is not None and self.base_model is None:
            raise ValueError("a quantized base without its name on the hub")
        return self


def describe_for_hub(base: str, data: JsonValue, languages: Sequence[str] = ()) -> HubReceipt:
    """Return the metadata of an adapter.

    `base` is the name of the base on this machine, where a folder has its full path. `data` is the section `data` of
    the recipe as JSON.
    """
    embedded = _EMBEDDED_BASES.get(base)
    on_hub = base if re.fullmatch(_REPOSITORY, base) else None
    section = data if isinstance(data, dict) else {}
    sources = section.get("train")
    listed = sources if isinstance(sources, list) else [sources]
    hubs = [source.get("hub") if isinstance(source, dict) else None for source in listed]
    names = tuple(dict.fromkeys(name for name in hubs if isinstance(name, str) and _is_dataset_id(name)))
    has_own_set = any(section.get(name) is not None for name in ("validation", "test"))
    is_only_source = len(names) == 1 and all(hub == names[0] for hub in hubs) and not has_own_set
    return HubReceipt(
        base_model=embedded.hub_id if embedded else on_hub,
        quantization=embedded.quantization if embedded else None,
        datasets=names,
        held_out=names[0] if is_only_source else None,
        languages=tuple(dict.fromkeys(languages)),
    )


def _is_dataset_id(name: str) -> bool:
    """Return whether a name has the form of a data set's id on the hub."""
    return re.fullmatch(BASE_NAME_PATTERN, name) is not None


def format_hub_metadata(
    hub: HubReceipt,
    license_id: str | None,
    name: str,
    figures: Mapping[str, MetricFigures] | None = None,
    evaluated_set: str = "validation",
) -> list[str]:
    """Return the YAML front matter of a card. `license_id` is an id in the alphabet of the hub."""
    return [
        "---",
        *([f'base_model: "{hub.base_model}"', "base_model_relation: adapter"] if hub.base_model else []),
        *_format_list("datasets", hub.datasets),
        *_format_list("language", hub.languages),
        *([f'license: "{license_id}"'] if license_id else []),
        "tags:",
        "- lora",
        "- lora_chat",
        "library_name: peft",
        "pipeline_tag: text-generation",
        *_format_results(hub, name, figures or {}, evaluated_set),
        "---",
    ]


def format_base_note(hub: HubReceipt) -> list[str]:
    """Return the lines about an embedded base whose weights differ from those on the hub; none for any other base."""
    if hub.quantization is None or hub.base_model is None:
        return []
    return [
        "",
        f"The base is `{hub.base_model}` from a GGUF of type `{hub.quantization}`, so its weights are not the ones on "
        "the hub. The figures here belong to the base with these weights; on the weights of the hub the adapter gives "
        "other outputs.",
    ]


def _format_list(key: str, names: Sequence[str]) -> list[str]:
    """Return a YAML list of quoted names; nothing if it is empty."""
    return [f"{key}:", *(f'- "{name}"' for name in names)] if names else []


def _format_results(
    hub: HubReceipt, name: str, figures: Mapping[str, MetricFigures], evaluated_set: str
) -> Iterator[str]:
    """Yield the model index: one result for the held-out dialogues and one for the questions, if they have figures."""
    rows: dict[bool, list[str]] = {False: [], True: []}
    for metric in METRICS:
        pair = figures.get(metric.name)
        if pair is None or not all(abs(value) <= _MAX_VALUE for value in (pair["base"], pair["adapted"])):
            continue  # a value that is not finite is not within the limit either
        label = metric.format_label(pair.get("questions", 0))
        metric_type = _METRIC_TYPES.get(metric.name, metric.name)
        for side, value in (("adapted", pair["adapted"]), ("base", pair["base"])):
            rows[metric.items == "questions"] += [
                f'    - type: "{metric_type}"',
                f'      name: "{label} ({side})"',
                f"      value: {value:.6f}",
            ]
    if not any(rows.values()):
        return
    yield from ["model-index:", f'- name: "{name if re.fullmatch(NAME_PATTERN, name) else "adapter"}"', "  results:"]
    held_out = f"{hub.held_out}, {evaluated_set} set" if hub.held_out else f"{evaluated_set} set"
    for title, dataset, lines in (
        (held_out, hub.held_out or _UNKNOWN_DATASET, rows[False]),
        ("questions", _UNKNOWN_DATASET, rows[True]),
    ):
        if lines:
            yield from ["  - task:", '      type: "text-generation"', '      name: "Text Generation"']
            yield from ["    dataset:", f'      name: "{title}"', f'      type: "{dataset}"', "    metrics:", *lines]
