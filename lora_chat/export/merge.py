"""Merge adapters into a 16-bit base, read the written model and compare it with the adapted model."""

import logging
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lora_chat.config.plan import PrecisionPlan
from lora_chat.errors import IntegrityError, UsageError
from lora_chat.export.merged_config import complete_config
from lora_chat.export.merged_generation import write_generation_config
from lora_chat.export.merged_tokenizer import write_tokenizer
from lora_chat.export.parity.compare import ParityReport, check_parity, measure_parity
from lora_chat.export.parity.format import write_parity_reports
from lora_chat.export.parity.outputs import ParityOutputs
from lora_chat.export.parity.reader_runner import Reader, ReaderRunner
from lora_chat.export.parity.reading_device import plan_reading, read_on_either_device
from lora_chat.export.parity.samples import ParitySample
from lora_chat.export.parity.transformers_runner import TransformersRunner, collect_adapted_outputs
from lora_chat.models.adapter import load_adapters, merge_adapter
from lora_chat.models.base_model import LocalBase, load_base_model, load_tokenizer
from lora_chat.models.bound_adapter import BoundAdapter
from lora_chat.models.float32_products import float32_products
from lora_chat.models.quantization.dequantized_model import load_dequantized_model
from lora_chat.system.atomic_write import atomic_folder
from lora_chat.system.gpu_memory import release_gpu_memory
from lora_chat.system.hardware import has_cpu_bfloat16
from lora_chat.system.malloc import release_freed_memory

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class AdapterBlend:
    """Adapters of one base, each with a weight, and the precision of the base in training."""

    adapters: tuple[tuple[BoundAdapter, float], ...]
    precision: PrecisionPlan
    stop_ids: tuple[int, ...]

    def __post_init__(self) -> None:
        """Raise IntegrityError or UsageError for adapters that cannot be merged together."""
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
                    "a merged model has only one."
                )
        for adapter, weight in self.adapters:
            if adapter.stored.replaces_weights and (len(self.adapters) > 1 or weight != 1):
                raise UsageError(
                    f"{adapter.stored.name} replaces whole modules or rows of the base. "
                    "Fix: merge it without other adapters and with weight 1."
                )
            if adapter.stored.has_biases and (len(self.adapters) > 1 or weight != 1):
                raise UsageError(
                    f"{adapter.stored.name} replaces biases of the base. "
                    "Fix: merge it without other adapters and with weight 1."
                )
            rescaling = [variant for variant in adapter.stored.special_variants if variant.rescales_base]
            if rescaling and (len(self.adapters) > 1 or weight != 1):
                raise UsageError(
                    f"{adapter.stored.name} is a {rescaling[0].title} adapter: it rescales the weights of the base. "
                    "Fix: merge it without other adapters and with weight 1."
                )

    @property
    def base(self) -> LocalBase:
        """Return the base, which all adapters share."""
        return self.adapters[0][0].base

    @property
    def tokenizer(self) -> "PreTrainedTokenizerBase":
        """Return the tokenizer with the chat template of training."""
        return self.adapters[0][0].tokenizer

    def attach_to(self, base: "PreTrainedModel") -> "PeftModel":
        """Attach all adapters to a base."""
        return load_adapters(base, [(adapter.stored, weight) for adapter, weight in self.adapters])

    def load_adapted_model(self) -> "PeftModel":
        """Load the adapted model in the precision of training."""
        return self.attach_to(load_base_model(self.base, self.precision))

    def collect_outputs(self, samples: Sequence[ParitySample]) -> ParityOutputs:
        """Collect the outputs of the adapted model, and release its memory on a GPU."""
        outputs = collect_adapted_outputs(self.load_adapted_model(), self.tokenizer, samples, self.stop_ids)
        release_gpu_memory()
        return outputs


def merge_blend(
    blend: AdapterBlend,
    samples: Sequence[ParitySample],
    to: Path,
    *,
    original: bool = False,
    accept: bool = False,
) -> ParityReport:
    """Merge the adapters, write the model and check it as `merge_and_read` does, with this environment only."""
    return merge_and_read(blend, samples, to, (), original=original, accept=accept)[0]


def merge_and_read(
    blend: AdapterBlend,
    samples: Sequence[ParitySample],
    to: Path,
    readers: Sequence[Reader],
    *,
    original: bool = False,
    accept: bool = False,
) -> list[ParityReport]:
    """Merge the adapters, write the model, read it again and compare it with the adapted model.

    Return the report of this environment, then one for each of `readers`.

    The base is quantized exactly as in training and then dequantized, because the adapter was trained on those values
    and merging into quantized weights would round the result. With `original`, the adapters are merged into the
    original weights. Raises IntegrityError if a parity check fails and that is not accepted; then nothing is kept.
    Raises OutOfMemoryError before anything is written if a GPU run is too large for the main memory.
    """
    if to.exists() and (not to.is_dir() or any(to.iterdir())):
        raise UsageError(
            f"The folder is not empty: {to}. Merged models never replace files. Fix: name a new folder with --to."
        )
    if original and blend.precision.stored is not None:
        raise UsageError(
            f"--into original: {blend.base.name} is already quantized as {blend.precision.stored.title}, so it has no "
            "other weights. Fix: --into trained."
        )
    release_freed_memory()
    reading_precision = plan_reading(blend.base, blend.precision, samples)
    logger.info("Computing the outputs of the adapted model")
    expected = blend.collect_outputs(samples)
    logger.info(f"Merging into the {'original weights of the base' if original else 'weights that training used'}")
    with atomic_folder(to, "the merged model", shared=True) as folder:
        write_merged_model(blend, folder, original=original)
        is_slow = reading_precision.device != blend.precision.device
        logger.info(f"Reading the merged model again and comparing{' on the CPU, which is slower' if is_slow else ''}")
        report_name = _name_report(blend.precision, original)
        report = read_on_either_device(
            reading_precision,
            lambda precision: _measure_folder_parity(report_name, blend, expected, samples, folder, precision),
        )
        reports = [check_parity(report, accept=accept)]
        for reader in readers:
            logger.info(f"Reading the merged model with {reader.name} on the CPU and comparing")
            runner = ReaderRunner(reader, folder, blend.precision, samples, blend.stop_ids, blend.tokenizer)
            report = measure_parity(report_name, runner, expected, samples, blend.stop_ids)
            reports.append(check_parity(report, accept=accept))
        write_parity_reports(folder, reports)
    return reports


def write_merged_model(blend: AdapterBlend, folder: Path, *, original: bool = False) -> None:
    """Write the merged model as a folder in Hugging Face layout: shards, tokenizer, chat template, stop ids."""
    plain = blend.precision.model_copy(update={"mode": "none", "device": "cpu"})
    base = load_base_model(blend.base, plain) if original else load_dequantized_model(blend.base, blend.precision)
    _save_model(merge_adapter(blend.attach_to(base)), blend, folder)
    del base
    release_gpu_memory()


def write_base(blend: AdapterBlend, folder: Path) -> None:
    """Write the base with the weights of training, without adapters, in the same layout."""
    _save_model(load_dequantized_model(blend.base, blend.precision), blend, folder)
    release_gpu_memory()


def _save_model(model: "PreTrainedModel", blend: AdapterBlend, folder: Path) -> None:
    """Save a model as its base is laid out, with the tokenizer and stop ids of training, without references to code."""
    from transformers import GenerationConfig

    bos_id = model.generation_config.bos_token_id
    # Transformers refuses to save contradictory settings; the file is written below.
    model.generation_config = GenerationConfig()
    # An untrusted base may name code in `auto_map`, which other programs could run.
    if hasattr(model.config, "auto_map"):
        del model.config.auto_map
    model.save_pretrained(folder, max_shard_size="4GB")
    complete_config(folder, blend.base.folder, model.config)
    pad_id = blend.tokenizer.pad_token_id
    write_generation_config(folder, blend.base.folder, blend.stop_ids, pad_id, bos_id)
    write_tokenizer(folder, blend.base, blend.tokenizer)


def _name_report(precision: PrecisionPlan, original: bool) -> str:
    """Return the name of a merge's parity report, on which its tolerances depend."""
    if original:
        return "model merged into the original weights"
    return "merged model of an 8-bit base" if precision.mode == "8bit" else "merged model"


def _measure_folder_parity(
    report_name: str,
    blend: AdapterBlend,
    expected: ParityOutputs,
    samples: Sequence[ParitySample],
    folder: Path,
    precision: PrecisionPlan,
) -> ParityReport:
    """Compare a written folder, as Transformers opens it, with the adapted model."""
    written = LocalBase(str(folder), folder)
    model = load_base_model(written, precision)
    with float32_products(model) if _needs_float32_products(blend.precision, precision) else nullcontext():
        runner = TransformersRunner(model, load_tokenizer(written))
        return measure_parity(report_name, runner, expected, samples, blend.stop_ids)


def _needs_float32_products(trained: PrecisionPlan, reading: PrecisionPlan) -> bool:
    """Return whether the model of a GPU run is read on a CPU that has no products in its dtype."""
    if trained.device == reading.device or reading.dtype == "float32":
        return False
    return not (reading.dtype == "bfloat16" and has_cpu_bfloat16())
