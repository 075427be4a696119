"""The section `adapter` of a recipe."""

import math
from typing import Annotated, Literal

from pydantic import (
    AfterValidator,
    Field,
    JsonValue,
    SerializerFunctionWrapHandler,
    StringConstraints,
    model_serializer,
    model_validator,
)
from typing_extensions import Self

from lora_chat.config.base import NonEmptyStr, StrictModel, TokenText, UniqueTokens
from lora_chat.config.layer_patterns import check_layer_pattern, is_plain_name
from lora_chat.config.lora_variants import (
    InitializationName,
    LoraVariantName,
    find_initialization,
    find_lora_variant,
)

_MIN_SCALE, _MAX_SCALE = 1e-4, 4096.0
"""Range of the scale of an update. A smaller scale has no effect, and a larger one exceeds the range of 16 bits."""
_OPTIONAL_FIELDS = ("trainable_tokens", "new_tokens", "modules_to_save", "start", "stack")


_MAX_PATTERNS = 2000
MAX_RANK = 1024
Rank = Annotated[int, Field(ge=1, le=MAX_RANK)]
Alpha = Annotated[float, Field(gt=0, le=65536, allow_inf_nan=False)]


def _check_target_pattern(pattern: str) -> str:
    """Raise ValueError unless a text is a pattern, because PEFT compares it with whole names."""
    if is_plain_name(pattern):
        raise ValueError(
            f"{pattern} is neither `all-linear` nor a regular expression of whole names; for layers of that name "
            f"write [{pattern}]"
        )
    return check_layer_pattern(pattern)


LayerNumber = Annotated[int, Field(ge=0, lt=10_000)]
LAYER_RANGE_PATTERN = r"^(first|last) [1-9][0-9]{0,3}$"
LayerRange = Annotated[str, StringConstraints(pattern=LAYER_RANGE_PATTERN)]
LayerPattern = Annotated[str, StringConstraints(min_length=1), AfterValidator(check_layer_pattern)]
TargetPattern = Annotated[str, StringConstraints(min_length=1), AfterValidator(_check_target_pattern)]


class AdapterSection(StrictModel):
    """The LoRA weights that are trained."""

    rank: Rank = 16
    """Inner dimension of the two LoRA matrices."""
    alpha: Alpha = 32
    """Numerator of the scale of the update, which is alpha / rank (rsLoRA: alpha / sqrt(rank))."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the adapter's inputs that training drops."""
    target_modules: Literal["all-linear"] | tuple[NonEmptyStr, ...] | TargetPattern = "all-linear"
    """Layers with an adapter: `all-linear`, a list of layer names of the model, such as [q_proj, v_proj], or a regular
    expression of whole names, such as `.*\\.self_attn\\.(q|v)_proj`."""
    layers: LayerRange | Annotated[tuple[LayerNumber, ...], Field(min_length=1, max_length=1000)] | None = None
    """Decoder layers with an adapter, counted from 0: a list of numbers, `first N` or `last N`. By default all have
    one."""
    rank_pattern: Annotated[dict[LayerPattern, Rank], Field(min_length=1, max_length=_MAX_PATTERNS)] | None = None
    """Other ranks for some layers, by the end of their name or a regular expression of it, such as {down_proj: 32}. The
    first match counts. Their scale is alpha / their rank, unless `alpha_pattern` sets another alpha."""
    alpha_pattern: Annotated[dict[LayerPattern, Alpha], Field(min_length=1, max_length=_MAX_PATTERNS)] | None = None
    """Other alphas for some layers, in the same form."""
    variant: LoraVariantName = "lora"
    """Variant of LoRA: `lora`, `rslora` (arXiv 2312.03732, for high ranks) or `dora` (arXiv 2402.09353, slower)."""
    bias: Literal["none", "lora_only"] = "none"
    """Biases of the base that are trained too: `none`, or `lora_only`, those of the layers with an adapter (GPT-2 and
    Qwen 2 have some, Llama has none). The adapter then contains their new values."""
    initialization: InitializationName = "default"
    """Start of the LoRA weights: `default` (the update is zero), `gaussian` (zero, too), `pissa` (the largest singular
    values of the base's weights, arXiv 2404.02948; `pissa_niter_4` and `pissa_niter_16` compute them faster and nearly
    the same), `olora` (a QR decomposition, arXiv 2406.01775) or `loftq` (what `4bit` took from the weights, arXiv
    2310.08659). PiSSA and OLoRA are saved as plain LoRA of twice the rank for the original base."""
    start: NonEmptyStr | None = None
    """Adapter to train on from: a run, a parcel, a folder or a hub id. Its base, chat template, rank, alpha, target
    modules and variant are then those of the run, and may be left out. The optimizer starts new. A relative path starts
    at the folder of the recipe, or at the working directory if there is no such file."""
    stack: Literal["merge_first"] | None = None
    """`merge_first`: the adapter of `start` is merged into its base, and a new adapter is trained on the merged base,
    which is kept in the run folder. The rank and the other settings are then free."""

    trainable_tokens: Annotated[tuple[TokenText | Annotated[int, Field(ge=0)], ...], Field(min_length=1)] | None = None
    """Tokens whose rows in the embedding and in the LM head are trained too, by text or id, such as tokens in
    `data.keep_tokens`, or chat tokens that a pretrained base has never seen. Tokens in `new_tokens` always are."""
    new_tokens: UniqueTokens | None = None
    """Tokens that are added to the tokenizer and stay tokens in message text. Their rows begin as the mean of the known
    rows and are trained. Spare rows of the base are used; without them the embedding grows."""
    modules_to_save: Annotated[tuple[NonEmptyStr, ...], Field(min_length=1)] | None = None
    """Modules that are trained as a whole and saved with the adapter: the embedding, the LM head or norms, such as
    [embed_tokens, lm_head]. It takes far more memory and space than LoRA. A head that shares the embedding's weights is
    trained together with it."""
    experts: bool | Annotated[tuple[NonEmptyStr, ...], Field(min_length=1)] = False
    """Whether the experts of a mixture-of-experts base are trained too, or a list of their weights, such as
    [experts.down_proj]. Otherwise `all-linear` means the attention layers of such a base. Routers are never trained."""

    @property
    def selects_layers(self) -> bool:
        """Return whether the names of the adapted layers depend on the base, so that they must be resolved."""
        is_pattern = isinstance(self.target_modules, str) and self.target_modules != "all-linear"
        return is_pattern or any((self.layers, self.rank_pattern, self.alpha_pattern))

    @property
    def has_frozen_start(self) -> bool:
        """Return whether the second half of each layer's rank is the negative start, which is not trained."""
        return find_initialization(self.initialization).subtracts_start

    def without_layers(self) -> "AdapterSection":
        """Return the settings for a base with other layers and tokens, with a new adapter of the same size."""
        targets = "all-linear" if isinstance(self.target_modules, str) else self.target_modules
        changes = {"target_modules": targets, "layers": None, "rank_pattern": None, "alpha_pattern": None}
        changes |= dict.fromkeys(_OPTIONAL_FIELDS)
        rank = self.rank * find_initialization(self.initialization).rank_factor
        return self.model_copy(update={**changes, "rank": rank, "initialization": "default"})

    @property
    def scale(self) -> float:
        """Return the factor of the update."""
        return self.alpha / (math.sqrt(self.rank) if find_lora_variant(self.variant).scales_by_sqrt_rank else self.rank)

    @model_serializer(mode="wrap")
    def _serialize_set_fields(self, handler: SerializerFunctionWrapHandler) -> dict[str, JsonValue]:
        """Return the fields without unset ones that earlier versions do not know, such as in receipts."""
        fields: dict[str, JsonValue] = handler(self)
        return {key: value for key, value in fields.items() if key not in _OPTIONAL_FIELDS or value is not None}

    @model_validator(mode="after")
    def _check_stack(self) -> Self:
        if self.stack is not None and self.start is None:
            raise ValueError("`stack` needs `start`, the adapter that is merged into the base first")
        return self

    @model_validator(mode="after")
    def _check_scale(self) -> Self:
        if not _MIN_SCALE <= self.scale <= _MAX_SCALE:
            raise ValueError(
                f"alpha = {self.alpha:g} with rank = {self.rank} scales the update by {self.scale:g}; "
                f"the scale must be from {_MIN_SCALE:g} to {_MAX_SCALE:g}"
            )
        return self

    @model_validator(mode="after")
    def _check_layers(self) -> Self:
        if isinstance(self.layers, tuple) and len(set(self.layers)) < len(self.layers):
            raise ValueError("layers contains a number twice")
        return self

    @model_validator(mode="after")
    def _check_initialization(self) -> Self:
        initialization = find_initialization(self.initialization)
        if not initialization.decomposes_weights:
            return self
        if find_lora_variant(self.variant).rescales_base:
            raise ValueError(
                f"initialization = {self.initialization} cannot be combined with variant = {self.variant}, whose "
                "magnitudes would belong to the start"
            )
        largest = max(self.rank, *(self.rank_pattern or {}).values(), 0)
        if largest * initialization.rank_factor > MAX_RANK:
            raise ValueError(
                f"{initialization.title} saves an adapter of twice the rank: {largest} is above {MAX_RANK // 2}"
            )
        return self

    @model_validator(mode="after")
    def _check_experts(self) -> Self:
        if not (self.target_modules or self.experts):
            raise ValueError("adapter.target_modules is empty; name a layer, or set adapter.experts=true")
        if not self.target_modules and (self.rank_pattern or self.alpha_pattern):
            raise ValueError("rank_pattern and alpha_pattern need target_modules, because all experts have one rank")
        if self.experts and self.dropout:
            raise ValueError("PEFT cannot drop inputs of experts; set dropout = 0, or experts = false")
        if self.experts and find_lora_variant(self.variant).rescales_base:
            raise ValueError(f"experts cannot be trained with variant = {self.variant}; set variant = lora")
        if self.experts and find_initialization(self.initialization).decomposes_weights:
            raise ValueError(f"experts cannot start from {self.initialization}; set initialization = default")
        return self
