"""Report which other programs can use an adapter, in which form, and why.

The answers follow the sources of the programs: vLLM (`vllm/lora/peft_helper.py`, `config/lora.py`, the models'
`SupportsLoRA`, August 2026), llama.cpp (`convert_lora_to_gguf.py`, `src/llama-adapter.h`), Ollama (0.33 and its
deprecation notice), mlx-lm 0.32 (`tuner/utils.py`, `models/`), PEFT's tags. lora_chat opens adapters with PEFT and
llama.cpp and measures them (`proof.json`); the other three answers are not measured.

The answers are part of the model card, so their words belong to the version of the receipt and must not change.
"""

from dataclasses import dataclass
from typing import Literal

from lora_chat.models.adapter_config import LoraSettings
from lora_chat.models.architectures import find_architecture

PortabilityLevel = Literal["yes", "near", "merged", "no"]
"""`near`: runs, but on other weights than in training; `merged`: runs only as a merged model."""

_VLLM_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)


_TRAINED_PARTS_PEFT_VERSION = "0.18"
"""First version of PEFT with `ensure_weight_tying`, which ties modules and rows that are trained beside LoRA."""


@dataclass(frozen=True)
class Portability:
    """One program, and whether it can use the adapter."""

    program: str
    answer: PortabilityLevel
    why: str


def report_portability(settings: LoraSettings, mode: str, architecture: str | None) -> tuple[Portability, ...]:
    """Report for each program whether it can use an adapter of these settings.

    `mode` is the quantization of the base in training; `architecture` is its `model_type`, if known.
    """
    return (
        _peft_portability(settings, mode),
        _vllm_portability(settings, mode, architecture),
        _llama_cpp_portability(settings, mode, architecture),
        _merged_only("Ollama", "export --to ollama; from 0.34.1 on it takes no adapters"),
        _mlx_portability(architecture),
    )


def smallest_vllm_rank(rank: int) -> int | None:
    """Return the smallest maximum rank of vLLM that admits an adapter; None if its rank is too large."""
    return next((possible for possible in _VLLM_RANKS if possible >= rank), None)


def _peft_portability(settings: LoraSettings, mode: str) -> Portability:
    variant = settings.variant
    if settings.bias != "none":
        return Portability("PEFT", "yes", f"version 0.21 (biases; tested) or newer; {_base_precision_note(mode)}")
    if settings.rank_pattern or settings.alpha_pattern:
        return Portability("PEFT", "yes", f"any version with rank_pattern; {_base_precision_note(mode)}")
    if settings.replaces_weights:
        least = f"{_TRAINED_PARTS_PEFT_VERSION} (replaced modules or token rows)"
        return Portability("PEFT", "yes", f"version {least} or newer; {_base_precision_note(mode)}")
    if settings.experts:
        return Portability("PEFT", "yes", f"version 0.17 (target_parameters) or newer; {_base_precision_note(mode)}")
    least = f"{variant.min_peft_version} ({variant.title})" if variant.peft_argument else variant.min_peft_version
    return Portability("PEFT", "yes", f"version {least} or newer; {_base_precision_note(mode)}")


def _vllm_portability(settings: LoraSettings, mode: str, architecture: str | None) -> Portability:
    if settings.replaces_weights:
        return _merged_only("vLLM", "it reads no replaced modules or token rows")
    if unsupported := [variant.title for variant in settings.special_variants if not variant.read_by_vllm]:
        return _merged_only("vLLM", f"it knows no {unsupported[0]}")
    if settings.bias != "none":
        return _merged_only("vLLM", "it reads no biases")
    if settings.rank_pattern or settings.alpha_pattern:
        return _merged_only("vLLM", "it scales all layers by one alpha / rank")
    if settings.experts:
        return _merged_only("vLLM", "it reads no LoRA on PEFT's target_parameters")
    takes_lora = find_architecture(architecture).vllm_lora
    if takes_lora is False:
        return _merged_only("vLLM", f"its {architecture} takes no LoRA")
    rank = smallest_vllm_rank(settings.rank)
    if rank is None:
        return _merged_only("vLLM", f"rank {settings.rank} is above {_VLLM_RANKS[-1]}")
    flag = f"--enable-lora --max-lora-rank {rank}"
    if not takes_lora:
        return Portability("vLLM", "yes", f"with {flag}, if its model for {architecture or 'this base'} takes LoRA")
    if mode != "none":
        return Portability("vLLM", "near", f"with {flag}; {_ORIGINAL_WEIGHTS_NOTE}")
    return Portability("vLLM", "yes", f"with {flag}")


def _llama_cpp_portability(settings: LoraSettings, mode: str, architecture: str | None) -> Portability:
    if settings.replaces_weights:
        return _merged_only("llama.cpp", "it reads no replaced modules or token rows; export --to gguf")
    if unsupported := [variant.title for variant in settings.special_variants if not variant.read_by_llama_cpp]:
        return _merged_only("llama.cpp", f"it knows no {unsupported[0]}; export --to gguf")
    if settings.experts:
        return _merged_only("llama.cpp", "its converter reads no LoRA on experts; export --to gguf")
    if settings.bias != "none":
        return _merged_only("llama.cpp", "its adapters have no biases; export --to gguf")
    if find_architecture(architecture).stores_transposed_weights:
        return _merged_only("llama.cpp", f"its converter turns {architecture}'s weights; export --to gguf")
    scaled = [f" ({v.title}'s scale goes into alpha)" for v in settings.special_variants if v.scales_by_sqrt_rank]
    how = "export --to gguf-adapter, then --lora" + "".join(scaled)
    if mode != "none":
        return Portability("llama.cpp", "near", f"{how}; {_ORIGINAL_WEIGHTS_NOTE} (or merged: --to gguf)")
    return Portability("llama.cpp", "yes", how)


def _mlx_portability(architecture: str | None) -> Portability:
    if find_architecture(architecture).has_mlx_model:
        return _merged_only("MLX", "merge --to DIR, then mlx_lm.convert; it reads no PEFT adapters")
    return Portability("MLX", "no", f"it reads no PEFT adapters, and has no {architecture or 'model'} that we know of")


def _base_precision_note(mode: str) -> str:
    if mode == "none":
        return "on the base in 16 bits, as it was trained"
    return f"on the base in {mode} (bitsandbytes), as it was trained"


_ORIGINAL_WEIGHTS_NOTE = "near, not the same, on the base's own weights: it learned on quantised ones"


def _merged_only(program: str, why: str) -> Portability:
    return Portability(program, "merged", why)
