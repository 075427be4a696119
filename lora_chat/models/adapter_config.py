"""An untrusted adapter, and its settings after they were checked."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeGuard

from pydantic import ValidationError
from typing_extensions import Self

from lora_chat.config.lora_variants import LORA_VARIANTS, LoraVariant, find_lora_variant
from lora_chat.config.recipe import AdapterSection
from lora_chat.errors import IntegrityError, UnavailableError
from lora_chat.models.identity import Identity
from lora_chat.system.safetensors_header import TensorHeader
from lora_chat.system.sanitize import sanitize_line

if TYPE_CHECKING:
    import torch

_VARIANT_FIELDS = {variant.peft_argument for variant in LORA_VARIANTS if variant.peft_argument}
_PATTERN_FIELDS = "rank_pattern", "alpha_pattern"
_TRAINED_PART_FIELDS = {"modules_to_save", "trainable_token_indices", "ensure_weight_tying"}
"""Fields of parts that are trained beside LoRA."""
_CHECKED_FIELDS = {
    "peft_type",
    "r",
    "lora_alpha",
    "lora_dropout",
    "target_modules",
    "bias",
    *_PATTERN_FIELDS,
    "target_parameters",
    *_VARIANT_FIELDS,
    *_TRAINED_PART_FIELDS,
}
# These do not change the function, or PEFT sets them itself.
_IGNORED_FIELDS = {
    "base_model_name_or_path",
    "revision",
    "inference_mode",
    "task_type",
    "peft_version",
    "fan_in_fan_out",
}
_EMPTY_VALUES: tuple[object, ...] = (None, False, [], {})
_MODULE_NAME = re.compile(r"[A-Za-z0-9_]{1,100}(\.[A-Za-z0-9_]{1,100}){0,20}")
_MAX_TARGETS = 2000
_MAX_TOKEN_ID = 2**31
MAX_TOKEN_ROWS = 100_000
"""Largest number of rows of single tokens in an adapter."""
EMBEDDING_ROWS = ""
"""Name in `token_rows` for the embedding of any base, as a plain list of token ids means it in PEFT."""


@dataclass(frozen=True)
class LoraSettings:
    """Checked settings of an adapter, whose names PEFT and recipes spell differently."""

    rank: int
    alpha: float
    dropout: float
    target_modules: tuple[str, ...] | str
    """Names of layers, or `all-linear`. The pattern of a recipe is replaced before PEFT gets it."""
    special_variants: tuple[LoraVariant, ...] = ()
    """Variants other than plain LoRA. A recipe sets at most one; an adapter of another tool may have several."""
    rank_pattern: tuple[tuple[str, int], ...] = ()
    """Ranks of layers with another rank, by their names."""
    alpha_pattern: tuple[tuple[str, float], ...] = ()
    """Alphas of layers with another alpha, by their names."""
    modules_to_save: tuple[str, ...] = ()
    """Names of modules that the adapter replaces as a whole."""
    token_rows: tuple[tuple[str, tuple[int, ...]], ...] = ()
    """Names of embedding and LM head, each with the ids of the tokens whose rows the adapter replaces."""
    ties_weights: bool = False
    """Whether the LM head is replaced together with the embedding, whose weights it shares."""
    experts: bool | tuple[str, ...] = False
    """Weights of experts, or whether a recipe trains all of them; PEFT's `target_parameters`."""
    bias: Literal["none", "lora_only"] = "none"
    """Whether the adapter has new biases of its layers."""

    @classmethod
    def from_section(cls, section: AdapterSection) -> Self:
        """Return the settings of a recipe, plan or receipt."""
        targets = section.target_modules
        variant = find_lora_variant(section.variant)
        return cls(
            rank=section.rank,
            alpha=section.alpha,
            dropout=section.dropout,
            target_modules=targets if isinstance(targets, str) else tuple(sorted(targets)),
            special_variants=(variant,) if variant.peft_argument else (),
            rank_pattern=tuple(sorted((section.rank_pattern or {}).items())),
            alpha_pattern=tuple(sorted((section.alpha_pattern or {}).items())),
            modules_to_save=section.modules_to_save or (),
            token_rows=_rows_of_section(section),
            experts=section.experts if isinstance(section.experts, bool) else tuple(sorted(section.experts)),
            bias=section.bias,
        )

    @classmethod
    def from_peft(cls, config: Mapping[str, object], name: str, defaults: Mapping[str, object]) -> Self:
        """Return the settings of an adapter_config.json.

        `defaults` are PEFT's defaults of all fields. Raises IntegrityError for a field that is unknown here and differs
        from its default (regular expressions, replicated layers, other modules), and for settings out of range.
        """
        targets = _check_fields(config, name, defaults)
        variants = find_special_variants(config)
        square_root = any(variant.scales_by_sqrt_rank for variant in variants)
        ranks, alphas = (_read_pattern(config, field, name) for field in _PATTERN_FIELDS)
        try:
            values = {
                "rank": config["r"],
                "alpha": config["lora_alpha"],
                "dropout": config.get("lora_dropout", 0.0),
                "bias": config.get("bias") or "none",
                "target_modules": tuple(targets),
                "experts": tuple(_read_names(config.get("target_parameters") or [], "target_parameters", name))
                or False,
                "variant": next(v.name for v in LORA_VARIANTS if v.scales_by_sqrt_rank == square_root),
            }
            section = AdapterSection.model_validate(values)
            for layer in ranks.keys() | alphas.keys():
                of_layer = {"rank": ranks.get(layer, values["rank"]), "alpha": alphas.get(layer, values["alpha"])}
                AdapterSection.model_validate(values | of_layer)
        except KeyError as error:
            raise IntegrityError(f"The adapter {name}: its config has no {error}.") from error
        except ValidationError as error:
            first = error.errors()[0]
            problem = ": ".join([*map(str, first["loc"][:1]), first["msg"]])
            raise IntegrityError(f"The adapter {name} has settings out of range ({problem}).") from error
        return replace(
            cls.from_section(section),
            special_variants=variants,
            rank_pattern=tuple(sorted(ranks.items())),
            alpha_pattern=tuple(sorted(alphas.items())),
            **_read_trained_parts(config, name),
        )

    @property
    def variant(self) -> LoraVariant:
        """Return the variant that decides how the adapter is reported."""
        return self.special_variants[-1] if self.special_variants else find_lora_variant("lora")

    @property
    def row_ids(self) -> tuple[int, ...]:
        """Return the ids of all tokens whose rows the adapter replaces."""
        return tuple(sorted({number for _, ids in self.token_rows for number in ids}))

    @property
    def replaces_weights(self) -> bool:
        """Return whether the adapter replaces weights of the base, so that it cannot be scaled or summed."""
        return bool(self.modules_to_save or self.token_rows)

    def states_same_adapter(self, section: AdapterSection) -> bool:
        """Return whether a section describes these settings; it does not name the modules of rows and tied heads."""
        stated = replace(type(self).from_section(section), token_rows=self.token_rows, ties_weights=self.ties_weights)
        return stated == self and (section.trainable_tokens or ()) == self.row_ids

    def to_section(self) -> AdapterSection:
        """Return the settings as recipes and receipts store them."""
        return AdapterSection(
            rank=self.rank,
            alpha=self.alpha,
            dropout=self.dropout,
            target_modules=self.target_modules,
            variant=self.variant.name,
            rank_pattern=dict(self.rank_pattern) or None,
            alpha_pattern=dict(self.alpha_pattern) or None,
            trainable_tokens=self.row_ids or None,
            modules_to_save=self.modules_to_save or None,
            experts=self.experts,
            bias=self.bias,
        )

    def rank_of(self, layer: str) -> int:
        """Return the rank of a layer by its full name."""
        names = (name for name, _ in self.rank_pattern if layer == name or layer.endswith(f".{name}"))
        return dict(self.rank_pattern).get(next(names, ""), self.rank)

    def alpha_of(self, layer: str) -> float:
        """Return the alpha of a layer by its full name."""
        names = (name for name, _ in self.alpha_pattern if layer == name or layer.endswith(f".{name}"))
        return dict(self.alpha_pattern).get(next(names, ""), self.alpha)

    def to_peft(self) -> dict[str, object]:
        """Return the settings as arguments of PEFT's LoraConfig."""
        targets = self.target_modules
        return {
            "r": self.rank,
            "lora_alpha": self.alpha,
            "lora_dropout": self.dropout,
            "target_modules": targets if isinstance(targets, str) else list(targets),
            "bias": self.bias,
            **{
                variant.peft_argument: variant in self.special_variants
                for variant in LORA_VARIANTS
                if variant.peft_argument
            },
            **({"rank_pattern": dict(self.rank_pattern)} if self.rank_pattern else {}),
            **({"alpha_pattern": dict(self.alpha_pattern)} if self.alpha_pattern else {}),
            **self._trained_parts_to_peft(),
            **({} if isinstance(self.experts, bool) else {"target_parameters": list(self.experts)}),
        }

    def _trained_parts_to_peft(self) -> dict[str, object]:
        """Return the parts that are trained beside LoRA as arguments of PEFT; none of them for plain LoRA."""
        parts: dict[str, object] = {}
        if self.modules_to_save:
            parts["modules_to_save"] = list(self.modules_to_save)
        if self.token_rows:
            (name, ids), *others = self.token_rows
            rows = {name: list(ids), **{other: list(its) for other, its in others}}
            parts["trainable_token_indices"] = list(ids) if name == EMBEDDING_ROWS else rows
        if self.ties_weights:
            parts["ensure_weight_tying"] = True
        return parts

    def to_peft_file(self, base: str | None, revision: str | None) -> dict[str, object]:
        """Return the content of an adapter_config.json with only the fields that PEFT needs."""
        return {
            **self.to_peft(),
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM",
            "inference_mode": True,
            "base_model_name_or_path": base,
            "revision": revision,
        }

    def with_scale_in_alpha(self) -> Self:
        """Return plain LoRA of the same function: alpha * sqrt(rank) in place of a scale by sqrt(rank)."""
        variants = tuple(variant for variant in self.special_variants if not variant.scales_by_sqrt_rank)
        if variants == self.special_variants:
            return self
        ranks, alphas = dict(self.rank_pattern), dict(self.alpha_pattern)
        scaled = {
            layer: alphas.get(layer, self.alpha) * ranks.get(layer, self.rank) ** 0.5
            for layer in ranks.keys() | alphas.keys()
        }
        alpha = self.alpha * self.rank**0.5
        return replace(self, alpha=alpha, special_variants=variants, alpha_pattern=tuple(sorted(scaled.items())))


@dataclass(frozen=True)
class StoredAdapter:
    """An untrusted adapter from a folder or a parcel, validated before use."""

    name: str
    """Name in messages."""
    config: Mapping[str, object]
    """Content of adapter_config.json, not checked."""
    read_weights: "Callable[[], dict[str, torch.Tensor]]"
    """Function that reads all tensors, and raises IntegrityError if they cannot be read."""
    identity: Identity | None
    """Base, tokenizer and template that it was trained with; None for an adapter of another tool."""
    template: str | None
    read_headers: "Callable[[], Mapping[str, TensorHeader]]" = dict
    """Function that reads names and shapes of all tensors; raises IntegrityError if they cannot be read."""
    folder: Path | None = None
    """Folder of an adapter of another tool, which may contain its tokenizer."""
    size: int = 0
    """Size of the file of weights, in bytes; 0 if another check limits it."""
    base_hint: str = ""
    """Sentence that a message about a missing base ends with: how the base was made."""

    @property
    def base(self) -> tuple[str, str | None]:
        """Return the name and revision of the base in its config. Raises UnavailableError if none exists."""
        name, revision = self.config.get("base_model_name_or_path"), self.config.get("revision")
        if not isinstance(name, str) or not name:
            raise UnavailableError(f"The config of {self.name} names no base model. Fix: name it with --base.")
        return name, revision if isinstance(revision, str) else None

    @property
    def has_biases(self) -> bool:
        """Return whether its config says that it has biases of the base."""
        return self.config.get("bias") not in (None, "none")

    @property
    def special_variants(self) -> tuple[LoraVariant, ...]:
        """Return the variants of LoRA in its config, plain LoRA left out."""
        return find_special_variants(self.config)

    @property
    def replaces_weights(self) -> bool:
        """Return whether its config replaces weights of the base: whole modules, or rows of tokens."""
        return bool(self.config.get("modules_to_save") or self.config.get("trainable_token_indices"))

    @property
    def trains_experts(self) -> bool:
        """Return whether its config names weights of experts."""
        return bool(self.config.get("target_parameters"))

    @property
    def new_token_ids(self) -> tuple[int, ...]:
        """Return the ids of the tokens that it adds to the base."""
        return tuple(((self.identity and self.identity.new_tokens) or {}).values())


def _rows_of_section(section: AdapterSection) -> tuple[tuple[str, tuple[int, ...]], ...]:
    """Return the rows of a section whose tokens are ids; they are placed when the model is known."""
    ids = tuple(token for token in section.trainable_tokens or () if isinstance(token, int))
    return ((EMBEDDING_ROWS, ids),) if ids else ()


def _read_trained_parts(config: Mapping[str, object], name: str) -> dict[str, Any]:
    """Return the parts that an adapter_config.json replaces in the base. Raise IntegrityError for malformed ones."""
    modules, indices = config.get("modules_to_save"), config.get("trainable_token_indices")
    tying = config.get("ensure_weight_tying", False)
    if modules is not None and not _are_module_names(modules):
        raise IntegrityError(f"The adapter {name}: modules_to_save must be a list of names.")
    tables: dict[str, Any] = (
        indices if isinstance(indices, dict) else {} if indices in (None, []) else {EMBEDDING_ROWS: indices}
    )
    has_names = not isinstance(indices, dict) or all(_MODULE_NAME.fullmatch(key) for key in indices)
    if not has_names or not all(map(_are_token_ids, tables.values())):
        raise IntegrityError(f"The adapter {name}: trainable_token_indices must be lists of different token ids.")
    if not isinstance(tying, bool):
        raise IntegrityError(f"The adapter {name}: ensure_weight_tying must be true or false.")
    return {
        "modules_to_save": tuple(modules) if isinstance(modules, list) else (),
        "token_rows": tuple((key, tuple(ids)) for key, ids in tables.items()),
        "ties_weights": tying and bool(modules or tables),
    }


def _are_module_names(value: object) -> TypeGuard[list[str]]:
    """Return whether a value is a list of names of modules."""
    return (
        isinstance(value, list)
        and len(value) <= _MAX_TARGETS
        and all(isinstance(name, str) and _MODULE_NAME.fullmatch(name) for name in value)
    )


def _are_token_ids(value: object) -> bool:
    """Return whether a value is a list of different token ids."""
    return (
        isinstance(value, list)
        and 0 < len(value) <= MAX_TOKEN_ROWS
        and all(type(number) is int and 0 <= number < _MAX_TOKEN_ID for number in value)
        and len(set(value)) == len(value)
    )


def find_special_variants(config: Mapping[str, object]) -> tuple[LoraVariant, ...]:
    """Return the variants whose argument is true in an adapter_config.json."""
    return tuple(v for v in LORA_VARIANTS if v.peft_argument and config.get(v.peft_argument) is True)


def _read_pattern(config: Mapping[str, object], field: str, name: str) -> dict[str, Any]:
    """Return the numbers of a `rank_pattern` or `alpha_pattern` by the name of the layer.

    PEFT takes the names as regular expressions, so everything but a name is refused. Raises IntegrityError.
    """
    pattern = config.get(field) or {}
    if (
        not isinstance(pattern, dict)
        or len(pattern) > _MAX_TARGETS
        or not all(isinstance(layer, str) and _MODULE_NAME.fullmatch(layer) for layer in pattern)
    ):
        raise IntegrityError(f"The adapter {name}: {field} must be an object of names of layers.")
    return pattern


def _check_fields(config: Mapping[str, object], name: str, defaults: Mapping[str, object]) -> list[str]:
    """Return the target modules of an adapter_config.json.

    Raises IntegrityError for another kind of adapter, an unknown setting, or target modules that are not names.
    """
    if config.get("peft_type") != "LORA":
        kind = ascii(config.get("peft_type"))[:100]
        raise IntegrityError(f"The adapter {name}: only LoRA adapters can be read, not {kind}.")
    for key, value in config.items():
        if key in _CHECKED_FIELDS | _IGNORED_FIELDS:
            continue
        if value != defaults.get(key) and value not in _EMPTY_VALUES:
            raise IntegrityError(
                f"The adapter {name}: {sanitize_line(key, 100)} = {ascii(value)[:100]} is not supported."
            )
    targets = _read_names(config.get("target_modules"), "target_modules", name)
    if not targets and not config.get("target_parameters"):
        raise IntegrityError(f"The adapter {name}: target_modules must be a list of names.")
    return targets


def _read_names(value: object, key: str, name: str) -> list[str]:
    """Return a list of names of layers or weights. Raises IntegrityError for any other value."""
    if (
        not isinstance(value, list)
        or len(value) > _MAX_TARGETS
        or not all(isinstance(target, str) and _MODULE_NAME.fullmatch(target) for target in value)
    ):
        raise IntegrityError(f"The adapter {name}: {key} must be a list of names.")
    return value
