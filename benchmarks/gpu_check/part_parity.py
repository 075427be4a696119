"""Part `parity`: loss and LoRA gradients of one real training step, on the fast path and on the stock path.

Each model has two layers with the head sizes of its family. The bound of every tensor is three times the model's own
noise, which is the difference between two attention functions of Transformers on the stock path.
"""

import logging
import statistics
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from check_records import Records, seconds_left
from check_sizes import CheckSize
from part_arguments import read_part_arguments
from random_models import make_config, write_base_folder
from step_gradients import StepResult, run_step

from lora_chat.config.plan import plan_precision
from lora_chat.config.recipe import AdapterSection, QuantizationSection
from lora_chat.models.adapter import attach_adapter
from lora_chat.models.base_model import LocalBase, load_base_model
from lora_chat.pipeline.machine_benchmark_worker import make_random_rows, write_random_model
from lora_chat.system.hardware import detect_hardware

_NOISE_FACTOR = 3.0
_FLOOR = 0.03
"""Relative difference that rounding in bf16 explains even where both stock attentions agree."""
_FLOOR_WITHOUT_NOISE = 0.06
"""The same for a model with only one stock attention, whose noise is not measured."""
_MAX_LOSS_DIFFERENCE = 0.01
_LAYERS = 2
_EXPECTED_NOTES = (("gemma2", "", "own LM head"), ("gemma2", "", "not fused"), ("", "8bit", "not fused"))
"""Notes that are no fault: part of the shape's name, part of the mode's name, part of the note."""


@dataclass(frozen=True)
class Comparison:
    """Relative differences of the gradients of all tensors, and of the loss."""

    worst: float
    worst_name: str
    median: float
    noise: float
    """Largest difference between two stock attentions."""
    over: tuple[str, ...]
    """Tensors beyond their bound."""
    loss: float


def compare(fast: StepResult, stock: StepResult, other: StepResult) -> Comparison:
    """Compare the fast path with the stock path; `other` is the stock path with another attention."""
    differences, noises = relative_differences(fast, stock), relative_differences(other, stock)
    typical = statistics.median(noises.values())
    floor = _FLOOR if other is not stock else _FLOOR_WITHOUT_NOISE
    bounds = {name: max(floor, _NOISE_FACTOR * max(noise, typical)) for name, noise in noises.items()}
    worst_name = max(differences, key=lambda name: differences[name])
    return Comparison(
        worst=differences[worst_name],
        worst_name=worst_name,
        median=statistics.median(differences.values()),
        noise=max(noises.values()),
        over=tuple(name for name, value in differences.items() if not value <= bounds[name]),
        loss=abs(fast.loss - stock.loss) / abs(stock.loss),
    )


def relative_differences(actual: StepResult, expected: StepResult) -> dict[str, float]:
    """Return the norm of the difference of each gradient, relative to its norm."""
    return {
        name: float((actual.gradients[name] - gradient).norm() / gradient.norm().clamp_min(1e-12))
        for name, gradient in expected.gradients.items()
    }


def main() -> None:
    """Compare every shape in every mode, without and with a shared prefix."""
    size, _ = read_part_arguments()
    records = Records()
    logging.getLogger("lora_chat").setLevel(logging.INFO)
    for shape_name, shape in size.parity_shapes.items():
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            config = make_config(shape.base, shape.changes, _LAYERS)
            write_base_folder(folder, config)
            write_random_model(config, _LAYERS, folder)
            for mode in size.parity_modes:
                if seconds_left() < 5:
                    records.skip(f"{shape_name} {mode}", "no time left")
                    continue
                try:
                    compare_mode(records, size, f"{shape_name} {mode}", folder, mode, config["vocab_size"])
                except Exception as error:  # the other shapes are compared too
                    text = (str(error).strip() or "no message").splitlines()[0]
                    records.check(f"{shape_name} {mode}", False, f"{type(error).__name__}: {text}")
                    if isinstance(error, torch.AcceleratorError):
                        raise  # the card cannot be used any more in this process
                torch.cuda.empty_cache()


def compare_mode(records: Records, size: CheckSize, name: str, folder: Path, mode: Any, vocabulary: int) -> None:
    """Compare one model in one mode of quantization."""
    hardware = detect_hardware()
    precision = plan_precision(QuantizationSection(mode=mode), hardware)
    base = load_base_model(LocalBase("random", folder), precision)
    model = attach_adapter(base, AdapterSection(rank=8), 0)
    fill_adapter(model)
    values = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
    for label, prefix in (("", 0), (" with a prefix", size.parity_prefix)):
        rows = make_random_rows(size.parity_lengths, 0.5, vocabulary, prefix)
        results: dict[str, StepResult] = {}
        stock_attention = model.config._attn_implementation
        other_attention = "eager" if stock_attention == "sdpa" else "sdpa"
        for path, attention in (("stock", stock_attention), ("other", other_attention), ("fast", stock_attention)):
            restore(model, values)
            if path == "other" and stock_attention != "sdpa":
                results[path] = results["stock"]  # a model with soft caps has only one attention
                continue
            model.set_attn_implementation(attention)
            results[path] = run_step(model, folder, rows, precision, fast=path == "fast")
            model.set_attn_implementation(stock_attention)
        comparison = compare(results["fast"], results["stock"], results["other"])
        record(records, name + label, comparison, results["fast"].notes)


def record(records: Records, name: str, comparison: Comparison, notes: tuple[str, ...]) -> None:
    """Record a comparison, and the notes that the fast path left."""
    records.add_figures(
        name,
        worst=comparison.worst,
        tensor=shorten(comparison.worst_name),
        median=comparison.median,
        noise=comparison.noise,
        loss=comparison.loss,
        notes=list(notes),
    )
    detail = f"{len(comparison.over)} tensors differ, {shorten(comparison.worst_name)} by {comparison.worst:.3f}"
    records.check(f"gradients, {name}", not comparison.over, detail)
    records.check(f"loss, {name}", comparison.loss < _MAX_LOSS_DIFFERENCE, f"differs by {comparison.loss:.4f}")
    expected = [text for shape, mode, text in _EXPECTED_NOTES if shape in name and mode in name]
    fallbacks = [note for note in notes if not any(text in note for text in expected)]
    records.check(f"no fallback, {name}", not fallbacks, " ".join(fallbacks))


def shorten(tensor: str) -> str:
    """Return the name of a tensor without its first and last parts, which all names share."""
    return tensor.removeprefix("base_model.model.model.").removesuffix(".default.weight")


def fill_adapter(model: Any) -> None:
    """Give LoRA's B random values, because gradients of A are zero otherwise; both are values of bf16."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                values = torch.randn(parameter.shape, generator=generator) * (0.02 if "lora_B" in name else 0.05)
                parameter.copy_(values.to(torch.bfloat16))


def restore(model: Any, values: Mapping[str, torch.Tensor]) -> None:
    """Set the adapter to saved values, in their dtype."""
    for name, parameter in model.named_parameters():
        if name in values:
            parameter.data = values[name].clone()


if __name__ == "__main__":
    main()
