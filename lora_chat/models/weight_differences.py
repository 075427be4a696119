"""Differences between the weights in a base's files and its model's, the allowed ones, and their message."""

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lora_chat.errors import IntegrityError
from lora_chat.models.quantization.quantized_base import has_quantization_config
from lora_chat.system.sanitize import sanitize_line

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

_MAX_NAMES = 3
"""Number of names of weights in a message."""
_BUFFERS = re.compile(
    r"(^|\.)(inv_freq|cos_cached|sin_cached)$"  # rotary embeddings, computed from the config
    r"|(^|\.)position_ids$"
    r"|\.(attn|attention)\.(attention\.)?(bias|masked_bias|causal_mask)$"  # masks of GPT models, CodeGen
)
"""Buffers that older versions of Transformers saved and that models compute themselves."""
_PREDICTION_HEADS = re.compile(r"(^|\.)mtp([._]\w+)?\.")
"""Heads for multi-token prediction (DeepSeek, Qwen3.5, GLM), which Transformers does not use."""
_TOWERS = re.compile(
    r"(^|\.)(vision_tower|vision_model|visual|audio_tower|multi_modal_projector|embed_vision|embed_audio|mm_projector)\."
)
"""Parts of multimodal bases that are not loaded if the base is used for text."""
_QUANTIZATION_STATE = re.compile(
    r"\.(absmax|quant_map|nested_absmax|nested_quant_map|SCB|weight_format|quant_state\.bitsandbytes__\w+)$"
)
"""Tensors beside the weights that bitsandbytes quantized."""
_CAUSES = (
    (
        re.compile(r"\.lora_[AB]\.|\.base_layer\.|\.modules_to_save\."),
        "The folder was saved with an adapter inside the model.",
        "merge the adapter before saving (merge_and_unload of PEFT), or use the base as its authors publish it.",
    ),
    (
        re.compile(
            r"\.(qweight|qzeros|g_idx|weight_scale|weight_scale_inv|weight_packed)$|" + _QUANTIZATION_STATE.pattern
        ),
        "The weights are quantized, and config.json has no fitting quantization_config.",
        "use the unquantized base, or copy its config.json again.",
    ),
)
"""Pattern of a foreign name, the cause, and the fix."""


@dataclass(frozen=True)
class WeightDifferences:
    """Differences between a base's files and its model."""

    missing: Collection[str] = ()
    foreign: Collection[str] = ()
    other_shapes: Collection[tuple[str, Iterable[int], Iterable[int]]] = ()
    """Name, shape in the file, and shape in the model."""
    integers: Collection[str] = ()
    """Weights whose values are integers, although the model has floating-point ones."""
    untied: Collection[str] = ()
    """Weights in the files that differ from the weights that the config ties them to."""

    @classmethod
    def from_loading_info(cls, info: Mapping[str, Any], config: "PretrainedConfig") -> "WeightDifferences":
        """Read the report of Transformers; known extras are left out."""
        foreign = [name for name in info["unexpected_keys"] if not is_known_extra(name, config)]
        return cls(info["missing_keys"], foreign, info["mismatched_keys"])


def is_known_extra(name: str, config: "PretrainedConfig") -> bool:
    """Return whether a model does without a tensor that its authors publish."""
    if _BUFFERS.search(name) or _PREDICTION_HEADS.search(name):
        return True
    if has_quantization_config(config) and _QUANTIZATION_STATE.search(name):
        return True
    if any(getattr(config, part, None) is not None for part in ("vision_config", "audio_config")):
        return _TOWERS.search(name) is not None
    # DeepSeek and GLM publish heads for multi-token prediction as layers after the last one.
    num_layers, num_heads = (getattr(config, key, None) for key in ("num_hidden_layers", "num_nextn_predict_layers"))
    layer = re.search(r"(^|\.)layers\.(\d{1,6})\.", name)
    if layer is None or not isinstance(num_layers, int) or not isinstance(num_heads, int):
        return False
    return num_layers <= int(layer[2]) < num_layers + num_heads


def refuse_differences(name: str, differences: WeightDifferences, model: "PreTrainedModel") -> None:
    """Raise IntegrityError with counts, first names, the cause and the fix if there are differences."""
    expected = model.state_dict().keys()
    parts = []
    if differences.missing:
        parts.append(
            f"{len(differences.missing):,} of {len(expected):,} weights of the model are missing "
            f"({_first_names(differences.missing)})"
        )
    if differences.foreign:
        parts.append(f"{len(differences.foreign):,} are foreign to the model ({_first_names(differences.foreign)})")
    if differences.other_shapes:
        key, file_shape, model_shape = min(differences.other_shapes, key=lambda item: _natural_key(item[0]))
        sizes = "{} in the file, {} in the model".format(*("x".join(map(str, s)) for s in (file_shape, model_shape)))
        parts.append(f"{len(differences.other_shapes):,} have another shape ({sanitize_line(key, 120)}: {sizes})")
    if differences.integers:
        parts.append(
            f"{len(differences.integers):,} are not floating-point numbers ({_first_names(differences.integers)})"
        )
    if differences.untied:
        parts.append(
            f"{len(differences.untied):,} differ from the weights that config.json ties them to "
            f"({_first_names(differences.untied)})"
        )
    if not parts:
        return
    cause, fix = _explain(differences, expected)
    raise IntegrityError(
        f"The weights in the files of {name} are not those of its config.json ({type(model).__name__}): "
        f"{'; '.join(parts)}.\n{cause}Fix: {fix}"
    )


def _explain(differences: WeightDifferences, expected: Collection[str]) -> tuple[str, str]:
    """Return the sentence about the cause, if it is known, and the fix."""
    for pattern, cause, fix in _CAUSES:
        if any(pattern.search(name) for name in differences.foreign):
            return f"{cause}\n", fix
    prefix = _find_prefix(differences.foreign, differences.missing)
    if prefix:
        return (
            f"The names have a prefix of a wrapper: without {sanitize_line(prefix, 60)!r} they are the model's.\n",
            "save the model again without its wrapper, or use the base as its authors publish it.",
        )
    if differences.untied and not (differences.missing or differences.foreign or differences.other_shapes):
        return "", 'set "tie_word_embeddings": false in config.json if both are meant, or copy the base again.'
    if differences.missing and len(differences.missing) > len(expected) / 2:
        return "", "use the config.json and the files of one base: copy or download it again."
    return "", "copy or download the base again."


def _find_prefix(foreign: Collection[str], missing: Collection[str]) -> str | None:
    """Return the part of most foreign names without which they are missing ones, or None.

    The part is at the beginning (`module.`, `base_model.model.`) or inside (`_orig_mod.`).
    """
    if not foreign or not missing:
        return None
    first = min(foreign, key=_natural_key).split(".")
    for length in range(1, len(first)):
        for start in range(len(first) - length):
            part = ".".join(first[start : start + length]) + "."
            num_explained = sum(name.replace(part, "", 1) in missing for name in foreign if part in name)
            if 2 * num_explained > len(foreign):
                return part
    return None


def _first_names(names: Collection[str]) -> str:
    """Format the first names; the rest is counted."""
    shown = [sanitize_line(name, 120) for name in sorted(names, key=_natural_key)[:_MAX_NAMES]]
    return ", ".join(shown) + (", ..." if len(names) > _MAX_NAMES else "")


def _natural_key(name: str) -> list[tuple[int, str]]:
    """Return a key that sorts layer 2 before layer 10."""
    return [(int(part), "") if part.isdecimal() and len(part) < 10 else (-1, part) for part in name.split(".")]
