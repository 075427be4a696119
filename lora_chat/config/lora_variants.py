"""The variants of LoRA that an adapter can be, one row each."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from lora_chat.errors import UsageError

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
    reads_8bit_base: bool = True
    """Whether PEFT computes it correctly on a base in 8 bits."""
    read_by_vllm: bool = True
    read_by_llama_cpp: bool = True


InitializationName = Literal["default", "gaussian", "pissa", "pissa_niter_4", "pissa_niter_16", "olora", "loftq"]
"""Values of `adapter.initialization` in a recipe: the names of the rows below."""


@dataclass(frozen=True)
class AdapterInitialization:
    """A start of the LoRA weights."""

    name: InitializationName
    title: str
    peft_value: bool | str = True
    """Value of `init_lora_weights` in PEFT's LoraConfig, which computes the start."""
    subtracts_start: bool = False
    """Whether the start is a part of the base's weights. The adapter subtracts it again, in a second half of its rank
    that is not trained, so that it fits the original base."""
    fits_residual: bool = False
    """Whether the start approximates what quantization took from the weights. It needs the original weights."""

    @property
    def rank_factor(self) -> int:
        """Return the rank of the adapter in multiples of the recipe's rank."""
        return 2 if self.subtracts_start else 1

    @property
    def decomposes_weights(self) -> bool:
        """Return whether the start is computed from the base's weights."""
        return self.subtracts_start or self.fits_residual


INITIALIZATIONS = (
    AdapterInitialization("default", "LoRA"),
    AdapterInitialization("gaussian", "Gaussian", "gaussian"),
    AdapterInitialization("pissa", "PiSSA", "pissa", subtracts_start=True),  # arXiv 2404.02948
    AdapterInitialization("pissa_niter_4", "PiSSA", "pissa_niter_4", subtracts_start=True),
    AdapterInitialization("pissa_niter_16", "PiSSA", "pissa_niter_16", subtracts_start=True),
    AdapterInitialization("olora", "OLoRA", "olora", subtracts_start=True),  # arXiv 2406.01775
    # arXiv 2310.08659; the best approximation of a matrix is PiSSA's start.
    AdapterInitialization("loftq", "LoftQ", "pissa", fits_residual=True),
)
"""Every start of an adapter."""


def find_initialization(name: InitializationName) -> AdapterInitialization:
    """Return the row of an initialization."""
    return next(initialization for initialization in INITIALIZATIONS if initialization.name == name)


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
        # PEFT moves the scales of LLM.int8 into the layer's state, so that the layer no longer quantizes its inputs.
        reads_8bit_base=False,
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


def check_base_mode(variants: Sequence[LoraVariant], mode: str, fix: str) -> None:
    """Raise UsageError if a variant does not work on a base in this quantization mode."""
    if mode == "8bit" and (unable := [variant.title for variant in variants if not variant.reads_8bit_base]):
        raise UsageError(f"{unable[0]} does not work on a base in 8 bits: PEFT damages its weights. Fix: {fix}.")
