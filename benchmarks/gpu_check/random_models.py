"""Build models of real sizes with random weights on the card, quantized there, from a config alone.

Speed and memory do not depend on the values of weights, so nothing has to be downloaded or transferred.
"""

import json
import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import torch

from lora_chat.models import base_model
from lora_chat.models.base_config import read_known_configs
from lora_chat.models.bundled import find_bundled_base

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from lora_chat.config.plan import PrecisionPlan

_STANDARD_DEVIATION = 0.02
_SPREAD = 0.6
"""Standard deviation of the logarithm of lengths, as in chats."""
_DIALOGUES_PER_STEP = 8


def make_config(base: str, changes: Mapping[str, Any], layers: int | None = None) -> dict[str, Any]:
    """Return the config of a known base with changes; an empty name changes nothing that is known."""
    config: dict[str, Any] = (dict(read_known_configs()[base]) if base else {}) | dict(changes)
    if layers is not None:
        config["num_hidden_layers"] = layers
    if config.get("layer_types"):
        config["layer_types"] = config["layer_types"][: config["num_hidden_layers"]]
    return config


def write_base_folder(folder: Path, config: Mapping[str, Any]) -> None:
    """Write a config and the tokenizer of the embedded tiny base, but no weights."""
    from transformers import AutoTokenizer

    folder.mkdir(parents=True, exist_ok=True)
    AutoTokenizer.from_pretrained(find_bundled_base("tiny-random"), local_files_only=True).save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps(dict(config)), encoding="utf-8")


def build_random_model(
    folder: Path,
    *,
    dtype: torch.dtype,
    device_map: Mapping[str, Any],
    quantization_config: Any = None,
    **_: object,
) -> "PreTrainedModel":
    """Build the model of a folder's config on the device of `device_map`; it replaces `from_pretrained`."""
    from accelerate import init_empty_weights
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.quantizers import AutoHfQuantizer

    place = device_map[""]
    device = torch.device("cuda", place) if isinstance(place, int) else torch.device(place)
    config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    with init_empty_weights(include_buffers=False):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    quantizer = None
    if quantization_config is not None:
        quantizer = AutoHfQuantizer.from_config(quantization_config, pre_quantized=False)
        quantizer.preprocess_model(model=model, dtype=dtype, device_map=dict(device_map))
        model.hf_quantizer = quantizer
    _fill_weights(model, dtype, device)
    model.tie_weights()
    for name, buffer in list(model.named_buffers()):
        owner, _dot, last = name.rpartition(".")
        model.get_submodule(owner).register_buffer(last, buffer.to(device), persistent=False)
    if quantizer is not None:
        quantizer.postprocess_model(model)
    built: PreTrainedModel = model.eval()
    return built


def _build_with_loading_info(folder: Path, **options: Any) -> "tuple[PreTrainedModel, dict[str, Any]]":
    """Build a random model and a report without differences."""
    return build_random_model(folder, **options), {}


def _fill_weights(model: torch.nn.Module, dtype: torch.dtype, device: torch.device) -> None:
    """Replace every meta parameter by random values on the device; bitsandbytes' layers quantize them there."""
    import bitsandbytes as bnb

    torch.manual_seed(0)
    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            if not parameter.is_meta:
                continue
            if parameter.dim() == 1:
                values = torch.ones(parameter.shape, dtype=dtype, device=device)
            else:
                values = torch.empty(parameter.shape, dtype=torch.bfloat16, device=device)
                values.normal_(0, _STANDARD_DEVIATION)
            quantized = name == "weight" and isinstance(module, bnb.nn.Linear4bit | bnb.nn.Linear8bitLt)
            if quantized and isinstance(module, bnb.nn.Linear4bit):
                old: Any = parameter
                options = {key: getattr(old, key) for key in ("compress_statistics", "quant_type", "quant_storage")}
                new = bnb.nn.Params4bit(values.to(dtype), requires_grad=False, module=module, **options)
                module.weight = new._quantize(device)
            elif quantized:
                module.weight = bnb.nn.Int8Params(values, requires_grad=False, has_fp16_weights=False)._quantize(device)
            else:
                setattr(module, name, torch.nn.Parameter(values.to(dtype), requires_grad=False))


@contextmanager
def _random_weights() -> Iterator[None]:
    """Let `load_base_model` build random weights."""
    with patch("transformers.AutoModelForCausalLM.from_pretrained", _build_with_loading_info):
        yield


def load_random_base(folder: Path, precision: "PrecisionPlan") -> "PreTrainedModel":
    """Load a base as lora_chat does, except that its weights are random."""
    with _random_weights():
        return base_model.load_base_model(base_model.LocalBase(folder.name, folder), precision, is_random=True)


def draw_lengths(tokens: int, steps: int) -> list[int]:
    """Return lengths of dialogues; each step has eight with `tokens` tokens together."""
    generator = random.Random(0)
    lengths: list[int] = []
    for _ in range(steps):
        weights = [generator.lognormvariate(0, _SPREAD) for _ in range(_DIALOGUES_PER_STEP)]
        step = [max(8, int(tokens * weight / sum(weights))) for weight in weights]
        step[0] += max(0, tokens - sum(step))
        lengths += step
    return lengths
