"""Adapters of mlx-lm: its settings as those of PEFT.

Its matrices are those of PEFT transposed, and its scale is alpha / rank (`mlx_lm/tuner/lora.py`, `dora.py`).
"""

import re
from collections.abc import Iterable, Mapping, Sequence

from lora_chat.errors import IntegrityError
from lora_chat.models.foreign.tensor_names import MAGNITUDE, TensorName
from lora_chat.system.sanitize import sanitize_line

MLX_WEIGHTS_NAME = "adapters.safetensors"
_SETTINGS = "lora_parameters"
_LAYER_NUMBER = re.compile(r"(.*\.layers\.)(\d+)\.(.+)")
_MAX_LAYERS = 10_000


def is_mlx_config(config: Mapping[str, object]) -> bool:
    """Return whether an adapter_config.json is one of mlx-lm."""
    return "peft_type" not in config and (_SETTINGS in config or "fine_tune_type" in config)


def convert_mlx_config(config: Mapping[str, object], tensors: Iterable[TensorName], name: str) -> dict[str, object]:
    """Return the settings of PEFT for the same function. Raises IntegrityError for settings that are not LoRA."""
    kind = config.get("fine_tune_type", "lora")
    if kind not in ("lora", "dora"):
        raise IntegrityError(
            f"The adapter {name} cannot be opened, because mlx-lm trained the weights of the model themselves "
            f"(fine_tune_type = {sanitize_line(str(kind), 50)}).\n"
            "Fix: write the whole model with mlx_lm.fuse --dequantize, and use that folder as a base."
        )
    settings = config.get(_SETTINGS)
    rank, scale = (settings.get("rank"), settings.get("scale")) if isinstance(settings, dict) else (None, None)
    if not isinstance(settings, dict) or not _is_number(rank, int) or not _is_number(scale, int | float):
        raise IntegrityError(f"The adapter {name}: its {_SETTINGS} lack a number rank or scale.")
    alpha = settings.get("alpha")
    if alpha is not None and alpha != rank and "fine_tune_type" not in config:
        # Version 0.15 stopped multiplying by alpha / rank, and 0.19 began to write fine_tune_type.
        raise IntegrityError(
            f"The adapter {name} cannot be opened, because its scale is ambiguous: old versions of mlx-lm multiplied "
            f"scale by alpha / rank.\nFix: delete alpha from adapter_config.json, and write the scale of training "
            f"there (mlx-lm before June 2024: scale * alpha / rank; later: scale)."
        )
    dropout = settings.get("dropout", 0.0)
    model = config.get("model")
    return {
        "peft_type": "LORA",
        "r": rank,
        "lora_alpha": scale * rank,  # type: ignore[operator]
        "lora_dropout": dropout,
        "use_dora": any(tensor.part == MAGNITUDE for tensor in tensors),
        "target_modules": None,
        "base_model_name_or_path": model if isinstance(model, str) else None,
    }


def find_missing_mlx_layers(
    config: Mapping[str, object], layers: Sequence[str], base_layers: Sequence[str]
) -> list[str]:
    """Return the layers that mlx-lm trained and the file lacks.

    It trains the last `num_layers` decoder layers, and the same linear layers in each of them.
    """
    numbered = [match for layer in layers if (match := _LAYER_NUMBER.fullmatch(layer))]
    in_base = [match for layer in base_layers if (match := _LAYER_NUMBER.fullmatch(layer))]
    prefixes, kinds = {match[1] for match in numbered}, {match[3] for match in numbered}
    count = config.get("num_layers", config.get("lora_layers"))
    total = 1 + max((int(match[2]) for match in in_base if match[1] in prefixes), default=-1)
    first = total - count if isinstance(count, int) and 0 < count <= min(total, _MAX_LAYERS) else 0
    expected = {match[0] for match in in_base if match[1] in prefixes and match[3] in kinds and int(match[2]) >= first}
    return sorted(expected - set(layers))


def _is_number(value: object, kind: type | object) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool)  # type: ignore[arg-type]
