"""The quantization of a base whose files are quantized already, and the share of weights that a mode quantizes."""

from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from lora_chat.config.base import StrictModel

QuantizationMode = Literal["4bit", "8bit", "none"]
# Transformers matches these names as regular expressions against every module name.
MODULE_NAME_PATTERN = r"^[A-Za-z0-9_]{1,100}(\.[A-Za-z0-9_]{1,100}){0,20}\.?$"
MAX_MODULES = 5_000
"""Limit of the modules that a base leaves in 16 bits."""


class StoredQuantization(StrictModel):
    """Quantization of a base's files, which replaces the mode of the recipe."""

    method: Literal["bitsandbytes", "fp8", "mxfp4"]
    mode: QuantizationMode
    """Mode of the base in memory. Weights in FP8 and MXFP4 are dequantized, so their mode is `none`."""
    quant_type: Literal["nf4", "fp4"] | None = None
    """Format of 4-bit weights."""
    double_quantization: bool = False
    compute_dtype: Literal["bfloat16", "float16", "float32"] | None = None
    """Dtype of the products of 4-bit layers."""
    skipped_modules: (
        Annotated[
            tuple[Annotated[str, StringConstraints(pattern=MODULE_NAME_PATTERN)], ...], Field(max_length=MAX_MODULES)
        ]
        | None
    ) = None
    """Modules that stay in 16 bits. None: those that Transformers leaves out by default, such as the LM head."""

    @property
    def title(self) -> str:
        """Return the method with its details, for users."""
        if self.method != "bitsandbytes":
            return self.method.upper()
        details = [self.quant_type.upper()] if self.quant_type else []
        details += ["double quantization"] if self.double_quantization else []
        details += [f"{len(self.skipped_modules)} modules left out"] if self.skipped_modules else []
        return f"bitsandbytes {self.mode}" + (f" ({', '.join(details)})" if details else "")


class QuantizationCoverage(StrictModel):
    """Number of a base's weights that a mode quantizes, and of those that stay in the dtype of the plan."""

    quantized: Annotated[int, Field(ge=0, le=2**53)]
    experts: Annotated[int, Field(ge=0, le=2**53)] = 0
    """Weights of experts in three-dimensional tensors, which bitsandbytes does not quantize."""
    layers: Annotated[int, Field(ge=0, le=2**53)] = 0
    """Weights of linear layers that are left out."""
    other: Annotated[int, Field(ge=0, le=2**53)] = 0
    """Weights of embeddings, the LM head, norms and biases."""

    @property
    def share(self) -> float:
        """Return the quantized share of all weights, 0 to 1."""
        return self.quantized / max(1, self.quantized + self.experts + self.layers + self.other)

    def describe(self, mode: str, bits: int) -> str:
        """Return one sentence about the weights that stay in 16 (or 32) bits."""
        total = max(1, self.quantized + self.experts + self.layers + self.other)
        kinds = {
            "3D expert weights": self.experts,
            "linear layers left out": self.layers,
            "embeddings, LM head and norms": self.other,
        }
        rest = ", ".join(f"{kind} ({count / total:.0%})" for kind, count in kinds.items() if count)
        return f"{mode} covers {self.share:.0%} of the weights" + (f"; {rest} stay in {bits} bits" if rest else "")
