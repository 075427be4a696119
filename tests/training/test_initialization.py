"""PiSSA, OLoRA and LoftQ start from the base's weights and end as plain LoRA for the original base."""

import json
import shutil

import pytest
import torch
from test_equivalence import make_rows

from lora_chat.config.lora_variants import INITIALIZATIONS
from lora_chat.config.plan import make_plan, plan_precision
from lora_chat.config.recipe import AdapterSection, BaseSection, CheckpointSection, QuantizationSection, Recipe
from lora_chat.errors import IntegrityError, RecipeError
from lora_chat.evaluation.loss import evaluate_loss
from lora_chat.models.adapter import attach_adapter, count_trainable_parameters, load_adapter, resolve_targets
from lora_chat.models.adapter_files import read_adapter, save_adapter
from lora_chat.models.adapter_initialization import convert_to_plain_lora, iterate_lora_layers
from lora_chat.models.base_model import find_base, load_base_model, load_meta_model, load_tokenizer
from lora_chat.models.identity import compute_identity
from lora_chat.models.quantization.dequantize import get_dense_weight
from lora_chat.runs.checkpoints import find_newest_checkpoint
from lora_chat.system.hardware import Hardware
from lora_chat.training.callbacks.checkpoint import CheckpointPolicy
from lora_chat.training.callbacks.metrics import MetricsCallback
from lora_chat.training.sft import train_sft
from lora_chat.training.training_run import TrainingRun

FP32 = Hardware("cpu", "test", 0, False, 2)
BF16 = Hardware("cpu", "test", 0, True, 2)
ROWS = make_rows(8)
IDS = torch.tensor([[5, 9, 77, 30, 8]])


def load(hardware=FP32, mode="none"):
    return load_base_model(tiny(), plan_precision(QuantizationSection(mode=mode), hardware))


def tiny(name="tiny-random"):
    return find_base(BaseSection(name=str(name)))


def logits_of(model):
    with torch.no_grad():
        return model.eval()(input_ids=IDS).logits.float()


@pytest.mark.parametrize("mode", ["none", "4bit", "8bit"])
@pytest.mark.parametrize("name", ["pissa", "pissa_niter_4", "olora"])
def test_starts_from_the_base_and_its_largest_components(cache_home, name, mode):
    base = load(mode=mode)
    expected = logits_of(base)
    weights = {
        name: get_dense_weight(m, torch.float32) for name, m in base.named_modules() if hasattr(m, "in_features")
    }
    model = attach_adapter(base, AdapterSection(rank=4, alpha=8, initialization=name))
    assert torch.allclose(logits_of(model), expected, atol=1e-4)
    for layer_name, layer in iterate_lora_layers(model):
        a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
        assert a.shape[0] == b.shape[1] == 8
        assert torch.equal(a[:4], a[4:]) and torch.equal(b[:, :4], -b[:, 4:])
        start, weight = layer.scaling["default"] * b[:, :4] @ a[:4], weights[layer_name]
        best = float(torch.linalg.svdvals(weight)[4:].norm())
        limit = {"pissa": 1.0005, "pissa_niter_4": 1.05}.get(name)
        if limit:
            assert best * 0.9995 <= float((weight - start).norm()) <= best * limit
        else:
            assert float((weight - layer.scaling["default"] * start).norm()) != 0
    with model.disable_adapter():
        assert torch.equal(logits_of(model), expected)


def test_loftq_brings_the_quantized_model_nearer_to_the_original(cache_home):
    original, quantized = load(), load(mode="4bit")
    error = {
        name: float((get_dense_weight(module, torch.float32) - original.get_submodule(name).weight.float()).norm())
        for name, module in quantized.named_modules()
        if "proj" in name
    }
    model = attach_adapter(quantized, AdapterSection(rank=8, alpha=4, initialization="loftq"), 0, load)
    for name, layer in iterate_lora_layers(model):
        update = layer.scaling["default"] * layer.lora_B["default"].weight @ layer.lora_A["default"].weight
        after = get_dense_weight(layer.base_layer, torch.float32) + update
        assert float((after - original.get_submodule(name).weight.float()).norm()) < 0.9 * error[name]
        assert layer.lora_A["default"].weight.shape[0] == 8


@pytest.fixture
def train(cache_home, tmp_path, monkeypatch):
    """Return a function that trains a PiSSA adapter in a folder, and the weights of each step."""
    seen = []
    stock = MetricsCallback.on_step_end

    def on_step_end(self, args, state, control, model=None, **kwargs):
        seen.append({name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad})
        return stock(self, args, state, control, model=model, **kwargs)

    monkeypatch.setattr(MetricsCallback, "on_step_end", on_step_end)

    def run(name, *, initialization="pissa", hardware=FP32, checkpoints=False, resume=False, **training):
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        section = AdapterSection(rank=4, initialization=initialization)
        model = attach_adapter(load(hardware), section, seed=3)
        settings = {"epochs": 2, "learning_rate": 1e-2, "effective_batch_size": 4, "weight_decay": 0.1} | training
        plan = make_plan(Recipe.model_validate({"data": {"train": "x"}, "training": settings}), hardware).training
        newest = find_newest_checkpoint(folder / "checkpoints")[0] if resume else None
        policy = CheckpointPolicy(folder / "checkpoints", CheckpointSection(every_steps=2, keep=9), {"a": 1}, newest)
        train_sft(
            TrainingRun(
                model=model,
                tokenizer=load_tokenizer(tiny()),
                train_rows=ROWS,
                validation_rows=ROWS[:2],
                plan=plan,
                metrics_path=folder / "metrics.jsonl",
                bfloat16=hardware.bfloat16,
                has_frozen_start=section.has_frozen_start,
                checkpoint_policy=policy if checkpoints else None,
            )
        )
        return model

    return run, seen


def test_only_the_first_half_moves_and_a_resumed_run_ends_with_the_same_bytes(train, tmp_path):
    run, seen = train
    model = run("complete", checkpoints=True)
    first, last = seen[0], seen[-1]
    start = dict(attach_adapter(load(), AdapterSection(rank=4, initialization="pissa"), seed=3).named_parameters())
    for name, weight in last.items():
        dim = 0 if "lora_A" in name else 1
        assert torch.equal(weight.narrow(dim, 4, 4), start[name].narrow(dim, 4, 4))
        assert not torch.equal(weight.narrow(dim, 0, 4), first[name].narrow(dim, 0, 4))
    shutil.copytree(tmp_path / "complete", tmp_path / "interrupted")
    shutil.rmtree(tmp_path / "interrupted" / "checkpoints" / "checkpoint-4")
    resumed = run("interrupted", checkpoints=True, resume=True)
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, resumed.get_parameter(name)), name


@pytest.mark.parametrize(("initialization", "hardware"), [("pissa", BF16), ("olora", FP32)])
def test_the_saved_adapter_computes_the_trained_function_on_the_original_base(
    train, tmp_path, initialization, hardware
):
    run, seen = train
    model = run("run", initialization=initialization, hardware=hardware, schedule="constant")
    trained = seen[-1]
    for name, layer in iterate_lora_layers(model):
        prefix = f"base_model.model.{name}"
        before = (
            trained[f"{prefix}.lora_B.default.weight"].double() @ trained[f"{prefix}.lora_A.default.weight"].double()
        )
        after = layer.lora_B["default"].weight.double() @ layer.lora_A["default"].weight.double()
        limit = 1e-2 if hardware.bfloat16 else 1e-5
        assert float((after - before).norm()) <= limit * float(before.norm())
    base = tiny()
    save_adapter(model, tmp_path / "adapter", compute_identity(base, load_tokenizer(base)), "{{ messages }}", "card")
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["init_lora_weights"]) == (8, 64, True)
    reopened = load_adapter(load(hardware), read_adapter(tmp_path / "adapter"))
    assert torch.equal(logits_of(reopened), logits_of(model))
    with model.disable_adapter():
        assert torch.equal(logits_of(model), logits_of(load(hardware)))
    assert (
        evaluate_loss(reopened, ROWS[:2]) == evaluate_loss(model, ROWS[:2]) != evaluate_loss(load(hardware), ROWS[:2])
    )


def test_a_gaussian_start_is_read_as_plain_lora(cache_home, tmp_path):
    model = attach_adapter(load(), AdapterSection(rank=4, initialization="gaussian"))
    for _, layer in iterate_lora_layers(model):
        torch.nn.init.ones_(layer.lora_B["default"].weight)
    base = tiny()
    save_adapter(model, tmp_path, compute_identity(base, load_tokenizer(base)), "{{ messages }}", "card")
    assert torch.equal(logits_of(load_adapter(load(), read_adapter(tmp_path))), logits_of(model))


def test_a_conversion_that_changes_the_update_is_refused(cache_home, monkeypatch):
    from lora_chat.models import adapter_initialization

    model = attach_adapter(load(), AdapterSection(rank=4, initialization="pissa"))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter[:2] += 0.1
    stock = adapter_initialization._balance
    monkeypatch.setattr(adapter_initialization, "_balance", lambda a, b: (stock(a, b)[0] * 1.01, stock(a, b)[1]))
    with pytest.raises(IntegrityError, match="could not be converted"):
        convert_to_plain_lora(model)


def test_layer_ranks_and_rslora_keep_the_scale(cache_home):
    expected = logits_of(load())
    section = AdapterSection(rank=2, rank_pattern={"q_proj": 4}, variant="rslora", initialization="olora")
    model = attach_adapter(load(), section)
    ranks = {
        name.split(".")[-1]: (layer.r["default"], layer.scaling["default"])
        for name, layer in iterate_lora_layers(model)
    }
    assert ranks["q_proj"] == (8, pytest.approx(32 / 4**0.5))
    assert ranks["k_proj"] == (4, pytest.approx(32 / 2**0.5))
    assert torch.allclose(logits_of(model), expected, atol=1e-4)
    skeleton = load_meta_model(tiny())
    plain = AdapterSection(rank=2, rank_pattern={"q_proj": 4})
    assert count_trainable_parameters(load_meta_model(tiny()), section) == 2 * count_trainable_parameters(
        skeleton, plain
    )


def test_refuses_what_cannot_be_decomposed(cache_home):
    with pytest.raises(RecipeError, match=r"takes 64 components from each layer"):
        resolve_targets(load_meta_model(tiny()), AdapterSection(rank=64, initialization="pissa"))
    recipe = {"data": {"train": "x"}, "adapter": {"initialization": "loftq"}, "quantization": {"mode": "none"}}
    with pytest.raises(RecipeError, match=r"quantization\.mode is none"):
        make_plan(Recipe.model_validate(recipe), FP32)
    for settings in ({"variant": "dora"}, {"experts": True}, {"rank": 600}):
        with pytest.raises(ValueError, match=r"cannot be combined|cannot start from|twice the rank"):
            AdapterSection(initialization="pissa", **settings)


def test_each_initialization_is_one_row():
    assert len({row.name for row in INITIALIZATIONS}) == len(INITIALIZATIONS)
    assert not any(row.subtracts_start and row.fits_residual for row in INITIALIZATIONS)
