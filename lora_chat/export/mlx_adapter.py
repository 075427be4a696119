"""Write the adapter as a folder for mlx-lm 0.32, and check it with lora_chat's reader of such folders.

mlx-lm computes y = x W^T + scale * (x a) b with one rank and one scale for all layers (`mlx_lm/tuner/lora.py`,
`dora.py`, `utils.py`). Other ranks are filled with zeros, and other scales go into the matrices b.
"""

import json
import logging
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from lora_chat.errors import UsageError
from lora_chat.export.exporter import ExportJob
from lora_chat.export.parity.transformers_runner import TransformersRunner
from lora_chat.models.adapter import load_adapters, validate_adapter_config
from lora_chat.models.adapter_config import LoraSettings, StoredAdapter
from lora_chat.models.adapter_files import read_adapter
from lora_chat.models.architectures import find_architecture
from lora_chat.models.base_model import LocalBase, load_base_model, read_model_type
from lora_chat.models.foreign.base_layers import read_base_layers
from lora_chat.models.foreign.fit import fit_foreign_adapter
from lora_chat.models.foreign.mlx import MLX_WEIGHTS_NAME
from lora_chat.models.foreign.tensor_names import LORA_A, LORA_B, MAGNITUDE, parse_peft_name

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)

_LAYER = re.compile(r"model\.layers\.(\d+)\.(.+)")
"""A layer as mlx-lm numbers it; it trains only layers inside of the decoder."""
_OTHER_NAMES = ("gemma3", "gpt_neox")
"""Architectures whose layers have other names in mlx-lm."""
_MERGE_FIRST = "Fix: merge --to FOLDER, then mlx_lm.convert --hf-path FOLDER."


class MlxAdapterExporter:
    """The writer of `adapters.safetensors` and mlx-lm's `adapter_config.json`."""

    def __init__(self, job: ExportJob) -> None:
        self._job = job

    def check(self) -> None:
        """Raise UsageError for adapters that mlx-lm cannot load."""
        adapters = self._job.blend.adapters
        if len(adapters) > 1:
            raise UsageError(f"mlx-lm loads one adapter: {len(adapters)} are given. {_MERGE_FIRST}")
        stored, base = adapters[0][0].stored, self._job.blend.base
        model_type = read_model_type(base)
        if not find_architecture(model_type).has_mlx_model or model_type in _OTHER_NAMES:
            raise UsageError(f"mlx-lm's layers of {model_type} are not those of the adapter. {_MERGE_FIRST}")
        settings = validate_adapter_config(stored)
        layers = {name.layer for key in stored.read_headers() if (name := parse_peft_name(key)).layer}
        reasons = {
            "replaces whole modules or rows of the base": stored.replaces_weights,
            "has biases": stored.has_biases,
            "trains experts with PEFT's target_parameters": stored.trains_experts,
            "has layers outside of the decoder": not all(_LAYER.fullmatch(layer) for layer in layers),
            "is DoRA with layers or ranks of their own": _has_dora(settings)
            and bool(settings.rank_pattern or _find_gaps(layers, base)),
        }
        if reason := next((reason for reason, applies in reasons.items() if applies), None):
            raise UsageError(f"mlx-lm cannot load {stored.name}, because it {reason}. {_MERGE_FIRST}")

    def write(self) -> Iterator[tuple[str, Path]]:
        """Write the weights, mlx-lm's config and the chat template."""
        from safetensors.torch import save_file

        blend, folder = self._job.blend, self._job.folder
        stored = blend.adapters[0][0].stored
        settings = validate_adapter_config(stored)
        weights, rank, scale = _convert_weights(stored, settings, blend.base)
        layers = [match for name in weights if (match := _LAYER.fullmatch(name.rpartition(".")[0]))]
        first = min(int(match[1]) for match in layers)
        config = {
            "fine_tune_type": "dora" if _has_dora(settings) else "lora",
            "num_layers": _count_layers(blend.base) - first,
            "lora_parameters": {
                "rank": rank,
                "scale": scale,
                "dropout": settings.dropout,
                "keys": sorted({match[2] for match in layers}),
            },
            "model": stored.base[0],
        }
        (folder / "adapter_config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
        save_file(weights, folder / MLX_WEIGHTS_NAME, metadata={"format": "mlx"})
        (folder / "chat_template.jinja").write_text(str(blend.tokenizer.chat_template), encoding="utf-8")
        if blend.precision.mode != "none":
            logger.info("The adapter learned on a quantized base: on other weights its outputs are near, not the same")
        yield "MLX adapter", folder

    def open_runner(self, path: Path) -> TransformersRunner:
        """Read the written folder as any adapter of mlx-lm, and put it on the base of training."""
        blend = self._job.blend
        stored = fit_foreign_adapter(read_adapter(path), blend.base)
        model = load_adapters(load_base_model(blend.base, blend.precision), [(stored, 1.0)])
        return _MlxFolderRunner(model, blend.tokenizer)


class _MlxFolderRunner(TransformersRunner):
    """An adapter of mlx-lm in Transformers."""

    @property
    def name(self) -> str:
        """Return the name of the reader."""
        return "lora_chat's reader of mlx-lm adapters"


def _convert_weights(
    stored: StoredAdapter, settings: LoraSettings, base: LocalBase
) -> "tuple[dict[str, torch.Tensor], int, float]":
    """Return the weights under mlx-lm's names, and the rank and scale of all layers."""
    import torch

    tensors: dict[str, dict[str, torch.Tensor]] = {}
    for key, weight in stored.read_weights().items():
        name = parse_peft_name(key)
        tensors.setdefault(name.layer, {})[name.part] = weight
    rank = max(len(parts[LORA_A]) for parts in tensors.values())
    scales = {layer: _scale_of(settings, layer, len(parts[LORA_A])) for layer, parts in tensors.items()}
    scale = max(scales.values())
    weights = {}
    for layer, parts in tensors.items():
        a, b = parts[LORA_A].t(), parts[LORA_B].t()
        if scales[layer] != scale:
            b = b.float() * (scales[layer] / scale)
        filled = rank - a.shape[1]
        weights[f"{layer}.lora_a"] = torch.nn.functional.pad(a, (0, filled)).contiguous()
        weights[f"{layer}.lora_b"] = torch.nn.functional.pad(b, (0, 0, 0, filled)).contiguous()
        if MAGNITUDE in parts:
            weights[f"{layer}.m"] = parts[MAGNITUDE].flatten().contiguous()
    for layer, (inputs, outputs) in _find_gaps(tensors, base).items():  # mlx-lm makes them in each layer
        weights[f"{layer}.lora_a"] = torch.zeros(inputs, rank)
        weights[f"{layer}.lora_b"] = torch.zeros(rank, outputs)
    return weights, rank, scale


def _scale_of(settings: LoraSettings, layer: str, rank: int) -> float:
    """Return the factor of a layer's product."""
    by_root = any(variant.scales_by_sqrt_rank for variant in settings.special_variants)
    return settings.alpha_of(layer) / (rank**0.5 if by_root else rank)


def _has_dora(settings: LoraSettings) -> bool:
    return any(variant.rescales_base for variant in settings.special_variants)


def _find_gaps(layers: "Mapping[str, object] | set[str]", base: LocalBase) -> dict[str, tuple[int, int]]:
    """Return inputs and outputs of the base's layers that mlx-lm adapts too, because it chooses layers by one list."""
    matches = [match for layer in layers if (match := _LAYER.fullmatch(layer))]
    first, keys = min((int(match[1]) for match in matches), default=0), {match[2] for match in matches}
    return {
        layer: (inputs, outputs)
        for layer, (outputs, inputs) in read_base_layers(base).shapes.items()
        if (match := _LAYER.fullmatch(layer)) and int(match[1]) >= first and match[2] in keys and layer not in layers
    }


def _count_layers(base: LocalBase) -> int:
    """Return the number of decoder layers of a base."""
    return 1 + max(int(match[1]) for layer in read_base_layers(base).shapes if (match := _LAYER.fullmatch(layer)))
