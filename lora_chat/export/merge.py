"""Adapters folded into a 16-bit base, proven by reading what was written."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_chat.config.plan import PrecisionPlan
from lora_chat.errors import IntegrityError, RecipeError
from lora_chat.export.parity.compare import ParityReport, check_parity, compare_outputs
from lora_chat.export.parity.format import write_parity_reports
from lora_chat.export.parity.outputs import ParityOutputs, collect_outputs
from lora_chat.export.parity.samples import ParitySample
from lora_chat.export.parity.tolerances import tolerances_for
from lora_chat.export.parity.transformers_runner import TransformersRunner, collect_adapted_outputs
from lora_chat.models.adapter import load_adapters, merge_adapter
from lora_chat.models.base_model import LocalBase, load_base_model, load_tokenizer
from lora_chat.models.bound_adapter import BoundAdapter
from lora_chat.models.quantization.dequantized_model import load_dequantized_model
from lora_chat.system.atomic_write import atomic_folder
from lora_chat.system.malloc import release_freed_memory

if TYPE_CHECKING:
    from transformers import PreTrainedModel

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class AdapterBlend:
    """Adapters of one base, each with a weight, and how that base was held in training."""

    adapters: tuple[tuple[BoundAdapter, float], ...]
    precision: PrecisionPlan
    stop_ids: tuple[int, ...]

    def __post_init__(self) -> None:
        """Raises IntegrityError for adapters that cannot be added up."""
        first = self.adapters[0][0]
        for other, _ in self.adapters[1:]:
            if other.base.folder != first.base.folder:
                raise IntegrityError(
                    f"{other.stored.name} was trained on {other.base.name}, "
                    f"{first.stored.name} on {first.base.name}: only adapters of one base can be merged together."
                )
            if str(other.tokenizer.chat_template) != str(first.tokenizer.chat_template):
                raise IntegrityError(
                    f"{other.stored.name} and {first.stored.name} were trained with different chat templates; "
                    "the merged model could have only one."
                )
        for found, weight in self.adapters:
            rescaling = [variant for variant in found.stored.special_variants if variant.rescales_base]
            if rescaling and (len(self.adapters) > 1 or weight != 1):
                raise RecipeError(
                    f"{found.stored.name} is a {rescaling[0].title} adapter: it rescales the base's weights, "
                    "so it can be merged alone and with weight 1 only."
                )

    @property
    def base(self) -> LocalBase:
        """The one base of all."""
        return self.adapters[0][0].base

    @property
    def tokenizer(self) -> Any:
        """With the template of training."""
        return self.adapters[0][0].tokenizer

    def attach_to(self, base: "PreTrainedModel") -> Any:
        """A base with all adapters on."""
        return load_adapters(base, [(found.stored, weight) for found, weight in self.adapters])

    def load_adapted_model(self) -> Any:
        """The adapted model, as it was trained."""
        return self.attach_to(load_base_model(self.base, self.precision))

    def collect_outputs(self, samples: Sequence[ParitySample]) -> ParityOutputs:
        """What it says."""
        return collect_adapted_outputs(self.load_adapted_model(), self.tokenizer, samples, self.stop_ids)


def merge_blend(
    blend: AdapterBlend,
    samples: Sequence[ParitySample],
    to: Path,
    *,
    original: bool = False,
    accept: bool = False,
) -> ParityReport:
    """Merge, write, read again, compare with the adapted model.

    The base is quantised exactly as in training and then dequantised: the adapter learned against those values, and
    a live 4-bit model must not be merged into. With `original` it is merged into the weights as they were before.
    Raises IntegrityError if the written model does not agree and that is not accepted; then nothing is kept.
    """
    if to.exists() and (not to.is_dir() or any(to.iterdir())):
        raise RecipeError(f"{to} is there already; a merged model is never written over something. Name a new folder.")
    release_freed_memory()
    logger.info("Asking the adapted model")
    expected = blend.collect_outputs(samples)
    logger.info(f"Merging into the base {'as it was before' if original else 'as it was trained against'}")
    with atomic_folder(to, "the merged model", shared=True) as folder:
        write_merged_model(blend, folder, original=original)
        logger.info("Reading the merged model again and comparing")
        report = check_parity(_check_folder_parity(blend, expected, samples, folder, original), accept=accept)
        write_parity_reports(folder, [report])
    return report


def write_merged_model(blend: AdapterBlend, folder: Path, *, original: bool = False) -> None:
    """The merged model as a folder in Hugging Face layout: weights in shards, tokenizer, template, stop ids."""
    plain = blend.precision.model_copy(update={"mode": "none", "device": "cpu"})
    base = load_base_model(blend.base, plain) if original else load_dequantized_model(blend.base, blend.precision)
    _save_model(merge_adapter(blend.attach_to(base)), blend, folder)


def write_base(blend: AdapterBlend, folder: Path) -> None:
    """The base alone, as it was trained against, in the same layout."""
    _save_model(load_dequantized_model(blend.base, blend.precision), blend, folder)


def _save_model(model: "PreTrainedModel", blend: AdapterBlend, folder: Path) -> None:
    settings: Any = model.generation_config
    settings.eos_token_id = list(blend.stop_ids)
    settings.pad_token_id = blend.tokenizer.pad_token_id
    for part in (model.config, blend.tokenizer):  # a stranger's base may name code there; others might run it
        getattr(part, "init_kwargs", {}).pop("auto_map", None)
        if hasattr(part, "auto_map"):
            del part.auto_map
    model.save_pretrained(folder, max_shard_size="4GB")
    blend.tokenizer.save_pretrained(folder)


def _check_folder_parity(
    blend: AdapterBlend, expected: ParityOutputs, samples: Sequence[ParitySample], folder: Path, original: bool
) -> ParityReport:
    if original:
        what = "model merged into the original weights"
    else:
        what = "merged model of an 8-bit base" if blend.precision.mode == "8bit" else "merged model"
    written = LocalBase(str(folder), folder)
    model = load_base_model(written, blend.precision.model_copy(update={"mode": "none"}))
    reader = TransformersRunner(model, load_tokenizer(written))
    vocabulary = model.config.get_text_config().vocab_size
    delivered = collect_outputs(reader, samples, blend.stop_ids, vocabulary)
    return compare_outputs(what, reader.name, expected, delivered, samples, tolerances_for(what))
