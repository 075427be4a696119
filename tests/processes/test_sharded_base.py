"""A base that is sharded over processes computes the same bits as a whole one, from a part of its weights."""

import os

import pytest
import torch
from ranks import run_ranks

from lora_chat.config.plan import plan_precision
from lora_chat.config.recipe import AdapterSection, BaseSection, QuantizationSection
from lora_chat.errors import RecipeError
from lora_chat.evaluation.loss import evaluate_loss
from lora_chat.models.adapter import adapter_weights, attach_adapter, write_peft_adapter
from lora_chat.models.base_model import find_base, load_base_model
from lora_chat.models.quantization.weight_cache import disable_weight_cache
from lora_chat.models.sharded_base import check_can_shard, find_layers, is_sharded, shard_base
from lora_chat.models.sharded_forwards import check_layer_order, first_process_computes, recorded_layers
from lora_chat.processes.group import current_group
from lora_chat.system.hardware import Hardware
from lora_chat.training.fast_path.select import find_fast_path

pytestmark = pytest.mark.slow  # imports libraries in a server of processes

ON_DEMAND = pytest.mark.skipif(os.environ.get("LORA_CHAT_ALL_BASES") != "1", reason="on demand")
ROWS = [list(range(10 + row, 40 + 2 * row)) for row in range(3)]
BATCH = torch.tensor([row[:28] for row in ROWS])


class _Row:
    input_ids = ROWS[0]
    labels = [-100] * 5 + ROWS[0][5:]


def _load(folder, mode, *, bfloat16, sharded, **adapter):
    """Return an adapted model whose adapter changes its output, and the bytes that were sharded."""
    disable_weight_cache()  # a sharded base has no cached weights, and those are multiplied with other rounding
    base = find_base(BaseSection(name=str(folder)))
    precision = plan_precision(QuantizationSection(mode=mode), Hardware("cpu", "test", 0, bfloat16, 2))
    section = AdapterSection(**{"rank": 4, **adapter})
    model = attach_adapter(load_base_model(base, precision), section, seed=3)
    generator = torch.Generator().manual_seed(5)
    for name, parameter in model.named_parameters():
        if "lora_B" in name and section.initialization == "default":
            parameter.data = (torch.randn(parameter.shape, generator=generator) * 0.05).to(parameter.dtype)
    sizes = shard_base(model, current_group().size, torch.device("cpu")) if sharded else None
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    return model, sizes


def _local_bytes(model) -> int:
    """Return the bytes that the weights of the decoder layers have in this process."""
    weights = [weight for layer in find_layers(model.get_base_model()) for weight in layer.parameters()]
    weights = [weight for weight in weights if hasattr(weight, "device_mesh")]
    return sum(weight.to_local().untyped_storage().nbytes() for weight in weights)


def _gathered_bytes(model) -> int:
    """Return the bytes of gathered weights that are still in memory, after every layer was gathered before."""
    storages = {}
    for layer in find_layers(model.get_base_model()):
        for parameter in layer._get_fsdp_state()._fsdp_param_groups[0].fsdp_params:
            for tensor in parameter.all_gather_outputs:
                storages[id(tensor)] = tensor.untyped_storage().nbytes()
    return sum(storages.values())


def _train(model, path, *, bfloat16, recompute) -> list[float]:
    """Return the losses of three optimizer steps."""
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    if recompute:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model.enable_input_require_grads()
    model.train()
    losses = []
    for _ in range(3):
        with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
            if path is None or path.head is None:
                loss = model(input_ids=BATCH, labels=BATCH).loss
            else:
                batch = path.packed_collator([{"input_ids": row, "labels": row} for row in ROWS])
                loss = path.head.loss(batch, 90)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def _measure(folder, mode, folders, *, bfloat16, sharded, fast, recompute, adapter) -> dict:
    """Train on a whole or sharded base and return what the two must have in common."""
    model, sizes = _load(folder, mode, bfloat16=bfloat16, sharded=sharded, **adapter)
    path = find_fast_path(model, ROWS[0]) if fast else None
    result = {"notes": path.notes if path else None}
    if path and path.fused:
        with path.use_fused_layers(model):
            result["losses"] = _train(model, path, bfloat16=bfloat16, recompute=recompute)
    else:
        result["losses"] = _train(model, None, bfloat16=bfloat16, recompute=recompute)
    if sharded:
        assert is_sharded(model)
        assert _gathered_bytes(model) == 0
        assert _local_bytes(model) == sizes.local
        result["share"] = sizes.local / sizes.whole
    with first_process_computes(model) as is_first:
        result["held-out"] = evaluate_loss(model, [_Row]) if is_first else None
    model.eval()
    with recorded_layers(model) as layers, torch.no_grad():
        model(input_ids=BATCH)
    check_layer_order(model, layers)
    # The next step gathers the same layers in all processes, although only the first one has measured.
    result["losses"] += _train(model, None, bfloat16=bfloat16, recompute=recompute)
    result["names"] = sorted(adapter_weights(model))
    write_peft_adapter(model, folders[current_group().rank.index])
    result["file"] = (folders[current_group().rank.index] / "adapter_model.safetensors").read_bytes()
    return result


def _compare(folder, mode, folders, bfloat16, fast, recompute, adapter) -> tuple[dict, dict]:
    options = {"bfloat16": bfloat16, "fast": fast, "recompute": recompute, "adapter": adapter}
    whole = _measure(folder, mode, folders, sharded=False, **options)
    return whole, _measure(folder, mode, folders, sharded=True, **options)


def _assert_same(count, folder, mode, tmp_path, *, bfloat16=True, fast=True, recompute=False, **adapter):
    folders = [tmp_path / str(number) for number in range(count)]
    pairs = run_ranks(count, _compare, str(folder), mode, folders, bfloat16, fast, recompute, adapter)
    whole = pairs[0][0]
    for index, (_, sharded) in enumerate(pairs):
        assert sharded["losses"] == whole["losses"]
        assert sharded["file"] == whole["file"]
        assert sharded["names"] == whole["names"]
        assert sharded["notes"] == whole["notes"]
        assert sharded["share"] == pytest.approx(1 / count, rel=0.05)
        assert sharded["held-out"] == (whole["held-out"] if index == 0 else None)
    assert len(set(whole["losses"])) == len(whole["losses"])


def test_sharded_4bit_base_computes_the_same_bits(tmp_path):
    _assert_same(2, "tiny-random", "4bit", tmp_path, recompute=True)


@ON_DEMAND
@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("fast", [False, True])
@pytest.mark.parametrize("bfloat16", [False, True])
@pytest.mark.parametrize("mode", ["none", "4bit"])
def test_every_path_computes_the_same_bits(tmp_path, mode, bfloat16, fast, recompute):
    _assert_same(2, "tiny-random", mode, tmp_path, bfloat16=bfloat16, fast=fast, recompute=recompute)


@ON_DEMAND
@pytest.mark.parametrize("mode", ["none", "4bit"])
@pytest.mark.parametrize("architecture", ["qwen2", "qwen3", "gemma2", "gpt2", "qwen3_moe", "mixtral"])
def test_other_architectures_compute_the_same_bits(random_base, tmp_path, architecture, mode):
    _assert_same(2, random_base(architecture), mode, tmp_path)


@ON_DEMAND
@pytest.mark.parametrize(
    "adapter",
    [
        {"variant": "dora"},
        {"variant": "rslora"},
        {"bias": "lora_only"},
        {"initialization": "pissa"},
        {"modules_to_save": ("embed_tokens",)},
        {"trainable_tokens": (5, 6)},
        {"target_modules": ("q_proj",), "layers": (1,)},
    ],
    ids=str,
)
def test_other_adapters_compute_the_same_bits(random_base, tmp_path, adapter):
    _assert_same(2, random_base("qwen2"), "4bit", tmp_path, **adapter)


@ON_DEMAND
def test_experts_are_trained_with_the_same_bits(random_base, tmp_path):
    _assert_same(2, random_base("qwen3_moe"), "none", tmp_path, experts=True)


@ON_DEMAND
@pytest.mark.parametrize("count", [3, 4])
def test_more_processes_compute_the_same_bits(tmp_path, count):
    _assert_same(count, "tiny-random", "4bit", tmp_path)


class Int8Params(torch.nn.Parameter):
    """A weight with the name of bitsandbytes' 8-bit weights."""


@pytest.mark.parametrize(
    ("layers", "problem"),
    [
        ([torch.nn.Linear(2, 2).requires_grad_(False)], "8 bits cannot be sharded"),
        ([torch.nn.LayerNorm(2).requires_grad_(False)], "no decoder layers that Transformers can run one by one"),
        ([], "no decoder layers"),
    ],
)
def test_refuses_bases_that_cannot_be_sharded(layers, problem):
    model = torch.nn.Module()
    model.weight = Int8Params(torch.zeros(1), requires_grad=False)
    with pytest.raises(RecipeError, match=f"base.shard: .*{problem}.*Fix: --set base.shard=false"):
        check_can_shard(model, layers)
