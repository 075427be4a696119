"""The variants of LoRA that an adapter can be, one row each."""

from dataclasses import dataclass
from typing import Literal

LoraVariantName = Literal["lora", "rslora", "dora"]
"""Values of `adapter.variant` in a recipe: the names of the rows below."""


@dataclass(frozen=True)
class LoraVariant:
    """A variant of LoRA: how PEFT names it, how it changes the adapter, and which programs read it."""

    name: LoraVariantName
    title: str
    """Name in messages and reports."""
    min_peft_version: str
    peft_argument: str | None = None
    """Argument of PEFT's LoraConfig, and key of adapter_config.json, that is true for it; None for plain LoRA."""
    scales_by_sqrt_rank: bool = False
    """Whether the update is scaled by alpha / sqrt(rank) instead of alpha / rank."""
    extra_vectors: tuple[str, ...] = ()
    """Names of the tensors of shape (out,) that each layer has beside lora_A and lora_B."""
    rescales_base: bool = False
    """Whether it changes the base's weights by more than a sum, so that adapters cannot be added up."""
    has_estimate: bool = True
    """Whether `plan` knows the memory and time that it adds."""
    read_by_vllm: bool = True
    read_by_llama_cpp: bool = True


LORA_VARIANTS = (
    LoraVariant("lora", "LoRA", min_peft_version="0.4"),  # arXiv 2106.09685
    # arXiv 2312.03732
    LoraVariant("rslora", "rsLoRA", min_peft_version="0.8", peft_argument="use_rslora", scales_by_sqrt_rank=True),
    # arXiv 2402.09353
    LoraVariant(
        "dora",
        "DoRA",
        min_peft_version="0.9",
        peft_argument="use_dora",
        extra_vectors=("lora_magnitude_vector",),
        rescales_base=True,
        has_estimate=False,
        read_by_vllm=False,
        read_by_llama_cpp=False,
    ),
)
"""Every variant. If an adapter of another tool has several, the last one decides how it is reported."""
EXTRA_VECTORS = tuple(name for variant in LORA_VARIANTS for name in variant.extra_vectors)
"""Tensors that some variants have beside lora_A and lora_B."""


def find_lora_variant(name: LoraVariantName) -> LoraVariant:
    """Return the row of a variant."""
    return next(variant for variant in LORA_VARIANTS if variant.name == name)
