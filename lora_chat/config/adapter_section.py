"""The section `adapter` of a recipe."""

import math
from typing import Annotated, Literal

from pydantic import Field, model_validator
from typing_extensions import Self

from lora_chat.config.base import NonEmptyStr, StrictModel
from lora_chat.config.lora_variants import LoraVariantName, find_lora_variant

_MIN_SCALE, _MAX_SCALE = 1e-4, 4096.0
"""Range of the scale of an update. A smaller scale has no effect, and a larger one exceeds the range of 16 bits."""


class AdapterSection(StrictModel):
    """The LoRA weights that are trained."""

    rank: Annotated[int, Field(ge=1, le=1024)] = 16
    """Inner dimension of the two LoRA matrices."""
    alpha: Annotated[float, Field(gt=0, le=65536, allow_inf_nan=False)] = 32
    """Numerator of the scale of the update, which is alpha / rank (rsLoRA: alpha / sqrt(rank))."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the adapter's inputs that training drops."""
    target_modules: Literal["all-linear"] | Annotated[tuple[NonEmptyStr, ...], Field(min_length=1)] = "all-linear"
    """Layers with an adapter: `all-linear`, or a list of layer names of the model, such as [q_proj, v_proj]."""
    variant: LoraVariantName = "lora"
    """Variant of LoRA: `lora`, `rslora` (arXiv 2312.03732, for high ranks) or `dora` (arXiv 2402.09353, slower)."""

    @property
    def scale(self) -> float:
        """Return the factor of the update."""
        return self.alpha / (math.sqrt(self.rank) if find_lora_variant(self.variant).scales_by_sqrt_rank else self.rank)

    @model_validator(mode="after")
    def _check_scale(self) -> Self:
        if not _MIN_SCALE <= self.scale <= _MAX_SCALE:
            raise ValueError(
                f"alpha = {self.alpha:g} with rank = {self.rank} scales the update by {self.scale:g}; "
                f"the scale must be from {_MIN_SCALE:g} to {_MAX_SCALE:g}"
            )
        return self
