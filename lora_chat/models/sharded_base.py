"""A frozen base whose decoder layers are sharded over processes with FSDP2, for bases that do not fit one card.

Each process has a part of every matrix of a decoder layer. PyTorch gathers a layer before its forward and before its
backward, and frees it afterwards (https://docs.pytorch.org/docs/2.13/distributed.fsdp.fully_shard.html). LoRA, norms,
biases, embeddings and the LM head are whole in every process, so gradients, checkpoints and adapters are the same as
without sharding.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from lora_chat.errors import RecipeError, first_line
from lora_chat.models.quantization.dequantize import is_shard
from lora_chat.models.text_layers import find_text_prefix

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

_4BIT_CLASS, _8BIT_CLASS = "Params4bit", "Int8Params"
"""Classes of bitsandbytes' weights."""
_FIX = "Fix: --set base.shard=false"
_MESH_DIMENSION = "dp_shard"
"""Accelerate's name for the dimension of processes over which weights are sharded."""

_State = tuple[type, dict[str, Any]]
"""The class and the attributes of a 4-bit weight."""


@dataclass(frozen=True)
class ShardedBytes:
    """Bytes of the weights that are sharded."""

    whole: int
    local: int
    """Bytes in this process between two layers."""
    largest_layer: int
    """Bytes of the largest decoder layer. A process has at most two layers at once: one in use and the next one."""


def shard_base(model: "torch.nn.Module", processes: int, device: "torch.device") -> ShardedBytes:
    """Shard the decoder layers of a model over the processes and move the model to a device, in place.

    The model is on a CPU, with or without an adapter. All processes call this together. Raises RecipeError for a base
    that cannot be sharded.
    """
    from accelerate.utils.fsdp_utils import fsdp2_prepare_model

    base: PreTrainedModel = getattr(model, "get_base_model", lambda: model)()
    layers = find_layers(base)
    check_can_shard(base, layers)
    states = _use_float_storage(layers)
    sizes = [sum(weight.nbytes for weight in _list_sharded_weights(layer)) for layer in layers]
    sharded = {id(weight) for layer in layers for weight in _list_sharded_weights(layer)}
    whole = [weight for weight in model.parameters() if id(weight) not in sharded]
    _move_tensors([*whole, *model.buffers()], device)
    if hasattr(base, "hf_device_map"):
        base.hf_device_map = {"": device.index if device.type == "cuda" else "cpu"}  # accelerate compares it
    settings = _make_settings(layers, whole, processes, device)
    try:
        # The decoder is called in every forward. The model around it is not, because the fast path has its own LM head.
        fsdp2_prepare_model(settings, base.base_model)
    except (ValueError, NotImplementedError, AssertionError) as error:
        raise RecipeError(f"base.shard: FSDP cannot shard this base: {first_line(error)}. {_FIX}") from error
    _restore_class_names(base)
    _restore_quantization(layers, states)
    shards = [weight for layer in layers for weight in layer.parameters() if is_shard(weight)]
    local = sum(weight.to_local().untyped_storage().nbytes() for weight in shards)
    return ShardedBytes(sum(sizes), local, max(sizes, default=0))


def check_can_shard(model: "torch.nn.Module", layers: list[Any]) -> None:
    """Raise RecipeError for a base without decoder layers that FSDP can shard, or with weights in 8 bits."""
    if not any(True for layer in layers for _ in _list_frozen_matrices(layer)):
        raise RecipeError(f"base.shard: this base has no decoder layers that Transformers can run one by one. {_FIX}")
    if any(type(weight).__name__ == _8BIT_CLASS for weight in model.parameters()):
        raise RecipeError(
            "base.shard: a base in 8 bits cannot be sharded, because bitsandbytes' 8-bit weights do not work with "
            f"FSDP. {_FIX}, or --set quantization.mode=4bit."
        )


def is_sharded(model: "torch.nn.Module") -> bool:
    """Return whether a model is sharded. All processes must then run the same forwards and backwards together."""
    return any(is_shard(weight) for weight in model.parameters())


def find_layers(base: "PreTrainedModel") -> list[Any]:
    """Return the decoder layers of a base; the layers of towers for pictures and sound stay whole."""
    from transformers.modeling_layers import GradientCheckpointingLayer

    prefix = find_text_prefix(base)
    return [
        module
        for name, module in base.named_modules()
        if isinstance(module, GradientCheckpointingLayer) and name.startswith(prefix)
    ]


def _list_frozen_matrices(layer: "torch.nn.Module") -> "Iterator[torch.nn.Parameter]":
    """Yield the frozen matrices of a decoder layer that belong to the base."""
    for name, weight in layer.named_parameters():
        if "lora_" not in name and not weight.requires_grad and weight.dim() > 1:
            yield weight


def _list_sharded_weights(layer: "torch.nn.Module") -> "Iterator[torch.nn.Parameter]":
    """Yield the frozen matrices that FSDP can shard; 4-bit weights are among them once they are stored as floats."""
    return (weight for weight in _list_frozen_matrices(layer) if weight.is_floating_point())


def _make_settings(
    layers: list[Any], whole: "list[torch.nn.Parameter]", processes: int, device: "torch.device"
) -> SimpleNamespace:
    """Return what accelerate's function reads of an Accelerator, which itself believes in one process here."""
    import torch
    from accelerate.utils import FullyShardedDataParallelPlugin
    from torch.distributed.device_mesh import init_device_mesh

    plugin = FullyShardedDataParallelPlugin(
        fsdp_version=2,
        reshard_after_forward=True,
        auto_wrap_policy="transformer_based_wrap",
        transformer_cls_names_to_wrap=sorted({type(layer).__name__ for layer in layers}),
        ignored_modules=[torch.nn.ParameterList(whole)],
        # Settings that accelerate would otherwise read from environment variables.
        cpu_offload=False,
        activation_checkpointing=False,
        cpu_ram_efficient_loading=False,
        state_dict_type="SHARDED_STATE_DICT",
    )
    return SimpleNamespace(
        state=SimpleNamespace(fsdp_plugin=plugin),
        torch_device_mesh=init_device_mesh(device.type, (processes,), mesh_dim_names=(_MESH_DIMENSION,)),
        parallelism_config=SimpleNamespace(fsdp_dim_names=(_MESH_DIMENSION,)),
        device=device,
        mixed_precision="no",  # the base already has the dtype in which it computes
        is_main_process=False,
    )


def _use_float_storage(layers: list[Any]) -> "dict[torch.nn.Module, _State]":
    """Store the bytes of 4-bit weights as floats, because FSDP shards only floats.

    The type is the one in which the layer computes (https://huggingface.co/docs/bitsandbytes/v0.50.0/fsdp_qlora).
    Return the class and the attributes of these weights, by layer.
    """
    states = {}
    for module in (module for layer in layers for module in layer.modules()):
        weight: Any = module._parameters.get("weight")
        if type(weight).__name__ != _4BIT_CLASS:
            continue
        storage = module.compute_dtype or weight.quant_state.dtype
        if weight.nbytes % storage.itemsize:
            continue  # such a weight stays whole
        module.weight = type(weight)(
            weight.data.flatten().view(storage).unsqueeze(1),
            requires_grad=False,
            quant_state=weight.quant_state,
            blocksize=weight.blocksize,
            compress_statistics=weight.compress_statistics,
            quant_type=weight.quant_type,
            quant_storage=storage,
            module=module,
            bnb_quantized=True,
        )
        module.quant_storage, module.quant_state = storage, weight.quant_state
        states[module] = type(weight), dict(vars(module.weight))
    return states


def _restore_quantization(layers: list[Any], states: "Mapping[torch.nn.Module, _State]") -> None:
    """Give shards and gathered 4-bit weights the state without which they cannot be dequantized."""
    for layer in layers:
        modules = [module for module in layer.modules() if module in states]
        for module in modules:
            module.weight.quant_state = module.quant_state
        layer.unshard()
        for module in modules:
            # PyTorch gathers a layer into the same parameter object each time.
            module.weight.__class__, attributes = states[module]
            vars(module.weight).update(attributes)
        layer.reshard()


def _restore_class_names(model: "torch.nn.Module") -> None:
    """Rename the classes that PyTorch made, such as FSDPLlamaDecoderLayer, because the name selects the fast path."""
    from torch.distributed.fsdp import FSDPModule

    for module in model.modules():
        if isinstance(module, FSDPModule):
            made = type(module)
            made.__name__ = next(kind.__name__ for kind in made.__mro__[1:] if kind is not FSDPModule)


def _move_tensors(tensors: "list[torch.Tensor]", device: "torch.device") -> None:
    """Move tensors that stay whole; on a CPU, copy them out of the mapped files of the base."""
    for tensor in tensors:
        tensor.data = tensor.data.to(device, copy=True)
        if (state := getattr(tensor, "quant_state", None)) is not None:
            state.to(device)
