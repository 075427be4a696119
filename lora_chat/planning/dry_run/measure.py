"""The shape of a model of any architecture, measured on the model without weights."""

import copy
import logging
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from transformers.pytorch_utils import Conv1D

from lora_chat.config.adapter_section import AdapterSection
from lora_chat.config.lora_variants import find_initialization
from lora_chat.config.stored_quantization import QuantizationMode
from lora_chat.errors import LoraChatError
from lora_chat.models.adapter import attach_adapter
from lora_chat.models.architectures import LOGIT_SCALING_FIELDS, SOFTCAPPING_FIELDS, find_architecture
from lora_chat.models.shape import LinearShape, read_size
from lora_chat.planning.dry_run.autocast import Autocast
from lora_chat.planning.dry_run.curves import Curve
from lora_chat.planning.dry_run.layer_passes import RecordedPasses, find_decoder_layers, record_passes
from lora_chat.planning.dry_run.quantized_layers import quantize
from lora_chat.planning.layer_memory import MicroBatch, PassMemory
from lora_chat.planning.measured_shape import BoundPasses, MeasuredShape, PassKind

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

logger = logging.getLogger(__name__)

_POINTS = (512, 1024, 2048)
_POINTS_OF_SLOW_MODELS = (64, 128, 256)
"""Tokens of the rows that are run: fewer if the model computes one token after the other."""
_SLOW_SECONDS = 1.0
_NO_PASS = PassMemory(0, 0, 0)


def measure_shape(model: "PreTrainedModel", adapter: AdapterSection) -> MeasuredShape:
    """Return the shape of a model in bf16 on the meta device, which is changed.

    The layers run when their bytes are first asked for. Raises RecipeError if the adapter does not fit the model.
    """
    config = model.config.get_text_config().to_dict()
    head: Any = model.get_output_embeddings()
    layers = find_decoder_layers(model)
    linears = tuple(_find_linears(model, head))
    embedding_weights = sum(weight.numel() for weight in _embedding_weights(model, head))
    linear_weights = sum(linear.weights for linear in linears)
    embeddings = {id(weight) for weight in _embedding_weights(model, head)}
    matrices = [weight.numel() for weight in model.parameters() if weight.dim() > 1 and id(weight) not in embeddings]
    heads = read_size(config, "num_attention_heads", "n_head", "num_heads", default=1)
    hidden_size = int(head.weight.shape[1])
    spec = replace(find_architecture(model.config.model_type), has_head_bias=_has_own_head(config, head))
    largest = max(matrices, default=0)
    bound = BoundPasses(_count_features(model, layers, config), hidden_size, heads, largest)
    return MeasuredShape(
        architecture=spec,
        layer_family=spec.model_type,
        num_layers=max(1, len(layers)),
        hidden_size=hidden_size,
        intermediate_size=read_size(config, "intermediate_size", "ffn_dim", "n_inner", default=4 * hidden_size),
        num_heads=heads,
        num_kv_heads=read_size(config, "num_key_value_heads", default=heads),
        head_dim=read_size(config, "head_dim", default=max(1, hidden_size // heads)),
        vocab_size=int(head.weight.shape[0]),
        max_positions=read_size(config, "max_position_embeddings", "n_positions", default=1 << 20),
        tied_embeddings=head.weight is model.get_input_embeddings().weight,
        has_softcapping=any(config.get(field) for field in SOFTCAPPING_FIELDS),
        has_attention_dropout=bool(config.get("attention_dropout", 0.0)),
        linears=linears,
        embedding_weights=embedding_weights,
        other_weights=sum(p.numel() for p in model.parameters()) - embedding_weights - linear_weights,
        largest_weight=largest,
        passes=DryRunPasses(model, adapter, bound),
    )


class DryRunPasses:
    """Bytes of the decoder layers from dry runs of the model; each is run once, at three lengths.

    If an operation has no implementation for tensors without values, the bytes are an upper bound.
    """

    def __init__(self, model: "PreTrainedModel", adapter: AdapterSection, bound: BoundPasses) -> None:
        self._adapter, self._bound = _only_lora(adapter), bound
        self.is_bound = False
        self._adapter_differs_by_layer = adapter.selects_layers
        self._kinds = [_kind_of_layer(layer) for layer in find_decoder_layers(model)]
        self._first_layers = model.requires_grad_(False)
        if not self._adapter_differs_by_layer:
            _keep_first_layers(model, _count_needed_layers(self._kinds))
        self._points: Sequence[int] | None = None
        self._curves: dict[tuple[PassKind, QuantizationMode], tuple[Sequence[Curve], Sequence[Curve]]] = {}

    def find(self, kind: PassKind, mode: QuantizationMode, batch: MicroBatch) -> tuple[PassMemory, PassMemory]:
        """Return the memory of the forward and of the backward pass; the latter is zero without gradients."""
        if not self.is_bound and (kind, mode) not in self._curves:
            try:
                self._curves[kind, mode] = self._run(kind, mode)
            except LoraChatError:
                raise
            except Exception as error:
                logger.debug("The model cannot run without weights: %s", error)
                self.is_bound = True
        if self.is_bound:
            return self._bound.find(kind, mode, batch)
        forward, backward = self._curves[kind, mode]
        evaluated = PassMemory(*(curve.value(batch) for curve in forward))
        return evaluated, _NO_PASS if kind == "read" else PassMemory(*(curve.value(batch) for curve in backward))

    def _run(self, kind: PassKind, mode: QuantizationMode) -> tuple[Sequence[Curve], Sequence[Curve]]:
        autocast = Autocast()
        model, kinds = self._prepare(kind, mode, autocast)
        if self._points is None:
            started = time.monotonic()
            record_passes(model, kinds, _POINTS_OF_SLOW_MODELS[1], autocast, learns=False)
            is_slow = time.monotonic() - started > _SLOW_SECONDS
            self._points = _POINTS_OF_SLOW_MODELS if is_slow else _POINTS
        recorded = [record_passes(model, kinds, tokens, autocast, learns=kind != "read") for tokens in self._points]
        return _fit(self._points, recorded, "forward"), _fit(self._points, recorded, "backward")

    def _prepare(
        self, kind: PassKind, mode: QuantizationMode, autocast: Autocast
    ) -> "tuple[PeftModel, Sequence[object]]":
        """Return the model with its first layers, as many as show every kind of layer, and the kinds of all layers."""
        base: Any = copy.deepcopy(self._first_layers)
        if mode != "none":
            quantize(base, mode)
        with torch.device("meta"):
            model = attach_adapter(base, self._adapter)
        kinds = self._kinds
        if self._adapter_differs_by_layer:
            kinds = [_kind_of_layer(layer) for layer in find_decoder_layers(model)]
            _keep_first_layers(model, _count_needed_layers(kinds))
        model.train()
        if kind == "checkpointed":
            options = {"use_reentrant": False, "context_fn": lambda: (nullcontext(), autocast)}
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=options)
        if kind != "read":
            model.enable_input_require_grads()
        return model, kinds


def _only_lora(adapter: AdapterSection) -> AdapterSection:
    """Return the LoRA layers of an adapter: parts that are trained beside them have formulas (`trained_parts`)."""
    rank = adapter.rank * find_initialization(adapter.initialization).rank_factor
    plain = {"initialization": "default", "bias": "none", "modules_to_save": None, "trainable_tokens": None}
    return adapter.model_copy(update={"rank": rank, "new_tokens": None, **plain})


def _fit(points: Sequence[int], recorded: Sequence[RecordedPasses], name: str) -> Sequence[Curve]:
    """Return the curves of a pass: of a layer, of the rest, and of the peak."""
    passes: list[PassMemory] = [getattr(passes_of_run, name) for passes_of_run in recorded]
    return [Curve.through(points, [getattr(memory, part) for memory in passes]) for part in ("layer", "rest", "peak")]


def _find_linears(model: torch.nn.Module, head: Any) -> list[LinearShape]:
    """Return the linear layers that bitsandbytes quantizes: all but the head."""
    linears = []
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear | Conv1D) and module is not head:
            inputs, outputs = module.weight.shape if isinstance(module, Conv1D) else module.weight.shape[::-1]
            linears.append(LinearShape(name.rpartition(".")[2], inputs, outputs, module.bias is not None))
    return linears


def _embedding_weights(model: torch.nn.Module, head: torch.nn.Module) -> list[torch.Tensor]:
    """Return the weights of embeddings and head, without repetitions."""
    weights = [module.weight for module in model.modules() if isinstance(module, torch.nn.Embedding) or module is head]
    unique: dict[int, Any] = {id(weight): weight for weight in weights}
    return list(unique.values())


def _has_own_head(config: Mapping[str, object], head: torch.nn.Module) -> bool:
    """Return whether the logits are more than a product, so that the model's own head is used."""
    return getattr(head, "bias", None) is not None or any(config.get(field) for field in LOGIT_SCALING_FIELDS)


def _count_features(model: torch.nn.Module, layers: Sequence[torch.nn.Module], config: Mapping[str, object]) -> int:
    """Return the sum of inputs and outputs of all matrices that one token passes, in one layer on average.

    A token passes a matrix of experts once for each expert that its router chooses.
    """
    chosen = read_size(config, "num_experts_per_tok", "num_experts_per_token", "moe_topk", "moe_k", default=1)
    total = 0
    for layer in layers or [model]:
        for weight in layer.parameters():
            if weight.dim() == 2:
                total += sum(weight.shape)
            elif weight.dim() == 3:
                total += chosen * sum(weight.shape[1:])
    return total // max(1, len(layers))


def _kind_of_layer(layer: torch.nn.Module) -> object:
    """Return the properties that layers of equal memory share: class, shapes of weights, and kind of attention."""
    shapes = tuple((name, tuple(weight.shape)) for name, weight in layer.named_parameters())
    kinds = tuple(
        (name, value)
        for module in layer.modules()
        for name in ("layer_type", "attention_type", "is_sliding", "sliding_window", "use_sliding_window")
        if isinstance(value := getattr(module, name, None), str | bool | int)
    )
    return type(layer).__name__, shapes, kinds


def _count_needed_layers(kinds: Sequence[object]) -> int:
    """Return the number of first layers with every kind, with the first kind twice, and one more."""
    last_new = max((kinds.index(kind) for kind in set(kinds)), default=-1)
    second_time = kinds.index(kinds[0], 1) if kinds and kinds[0] in kinds[1:] else 0
    return min(len(kinds), max(last_new, second_time) + 2)


def _keep_first_layers(model: torch.nn.Module, count: int) -> None:
    """Remove the decoder layers after the first `count`."""
    layers = find_decoder_layers(model)
    if not layers:
        return
    for module in model.modules():
        for name, child in list(module.named_children()):
            if isinstance(child, torch.nn.ModuleList) and len(child) == len(layers) and child[0] is layers[0]:
                setattr(module, name, torch.nn.ModuleList(layers[:count]))
