"""The cache of dequantized weights on an emulated card changes memory and time, and no result."""

import gc
import hashlib
import json
import logging
from pathlib import Path

import pytest

LENGTHS = [9 + n for n in (0, 5, 11, 2, 8, 4, 13, 3, 6, 1, 10, 7)]
NUM_LAYERS = 2
"""Decoder layers of tiny-random."""


def train(folder, cached_layers, settings, mode="4bit", tokens=0, cache_bytes=None, spare_bytes=None, wrong=False):
    """Train an adapter on the card; return what a user gets, and what happened to the cache."""
    import fake_card
    import torch

    from lora_chat.config.plan import make_plan, plan_precision
    from lora_chat.config.recipe import AdapterSection, BaseSection, QuantizationSection, Recipe
    from lora_chat.evaluation.loss import evaluate_loss
    from lora_chat.models.adapter import attach_adapter
    from lora_chat.models.base_config import find_base_config
    from lora_chat.models.base_model import find_base, load_base_model, load_tokenizer
    from lora_chat.models.quantization import gpu_weight_cache
    from lora_chat.models.shape import read_shape
    from lora_chat.pipeline.machine_benchmark_worker import make_random_rows
    from lora_chat.planning.weight_memory import MemoryConfig, cached_weight_bytes
    from lora_chat.system.hardware import detect_hardware
    from lora_chat.training import cached_weights, sft
    from lora_chat.training.training_run import TrainingRun

    messages = []
    handler = logging.Handler()
    handler.emit = lambda record: messages.append(record.getMessage())
    handler.addFilter(lambda record: not record.getMessage().startswith(("Preparing", "step")))
    logging.getLogger("lora_chat").addHandler(handler)
    logging.getLogger("lora_chat").setLevel(logging.INFO)
    hardware, base = detect_hardware(), find_base(BaseSection(name="tiny-random"))
    precision = plan_precision(QuantizationSection(mode=mode), hardware)
    model = attach_adapter(load_base_model(base, precision), AdapterSection(rank=4), 3)
    defaults = {"max_steps": 3, "learning_rate": 1e-2, "effective_batch_size": 4, "gradient_checkpointing": False}
    recipe = {"data": {"train": "x"}, "training": defaults | {"fast_path": True} | settings}
    plan = make_plan(Recipe.model_validate(recipe), hardware).training
    rows = make_random_rows([tokens + length for length in LENGTHS], 0.5, 259, 4)
    names = set(model.state_dict())
    cache = {}

    def fill(model, num_layers):
        if wrong:
            gpu_weight_cache.get_dense_weight = lambda layer, dtype: 1.1 * get_dense_weight(layer, dtype)
        random_state = torch.cuda.get_rng_state()
        before = torch.cuda.memory_allocated()
        waits = sum(fake_card.WAITS.values())
        if cache_bytes is not None:
            fake_card.set_free_bytes(cache_bytes)
        reason = fill_weight_cache(model, num_layers)
        cache["waits"] = sum(fake_card.WAITS.values()) - waits
        cache["bytes"] = torch.cuda.memory_allocated() - before
        cache["visible"] = sorted(set(model.state_dict()) - names)
        cache["same_random_state"] = torch.equal(random_state, torch.cuda.get_rng_state())
        fake_card.set_free_bytes(2**32 if spare_bytes is None else spare_bytes)
        cache["resident"] = torch.cuda.memory_allocated()
        return reason

    get_dense_weight, fill_weight_cache = gpu_weight_cache.get_dense_weight, gpu_weight_cache.fill_weight_cache
    cached_weights.fill_weight_cache = fill
    make_trainer = sft._make_trainer

    def make_trainer_after_checks(*arguments):
        gc.collect()
        cache.setdefault("at_start", []).append(torch.cuda.memory_allocated())
        fake_card.reset_counters()
        return make_trainer(*arguments)

    sft._make_trainer = make_trainer_after_checks
    run = TrainingRun(
        model=model,
        tokenizer=load_tokenizer(base),
        train_rows=rows,
        validation_rows=rows[:3],
        evaluate_each_epoch=not tokens,
        plan=plan.model_copy(update={"cached_layers": cached_layers}),
        metrics_path=Path(folder) / "metrics.jsonl",
        bfloat16=hardware.bfloat16,
        adjustable_settings=("micro_batch_tokens", "micro_batch_size"),
    )
    resident = torch.cuda.memory_allocated()
    result = sft.train_sft(run)
    quantized = {name: fake_card.OPERATIONS[name] for name in ("dequantize_4bit", "gemm_4bit", "int8_scaled_mm")}
    peak = fake_card.peak_bytes()
    fake_card.set_free_bytes(2**32)
    gc.collect()
    adapter = [p.detach().float().cpu().numpy().tobytes() for name, p in model.named_parameters() if "lora_" in name]
    shape = read_shape(find_base_config(BaseSection(name="tiny-random")).config, "tiny-random")
    return {
        "losses": [
            {name: row[name] for name in row if "loss" in name or name == "gradient_norm"}
            for row in map(json.loads, run.metrics_path.read_text().splitlines())
        ],
        "adapter": hashlib.sha256(b"".join(adapter)).hexdigest(),
        "evaluated": evaluate_loss(model, rows[:3]),
        "planned_bytes": cached_weight_bytes(shape, MemoryConfig(mode, 4, cached_layers=cached_layers)),
        "cache": cache,
        "training_bytes": peak - cache.get("resident", 0),
        "quantized": quantized,
        "kept_bytes": torch.cuda.memory_allocated() - resident,
        "left": [
            name
            for name, layer in model.named_modules()
            if "8bit" in type(layer).__name__ or "4bit" in type(layer).__name__
            if {"dense_weight", "forward"} & set(vars(layer))
        ],
        "trained": result.plan.model_dump(mode="json"),
        "messages": messages,
    }


@pytest.fixture(scope="module")
def uncached(card, tmp_path_factory):
    """Return the training on a 4-bit base without a cache."""
    return card.run(train, str(tmp_path_factory.mktemp("uncached")), 0, {})


def outcome(found):
    """Return what must not depend on the cache."""
    return {name: found[name] for name in ("losses", "adapter", "evaluated")}


@pytest.mark.parametrize(
    ("mode", "settings"),
    [
        ("4bit", {}),
        ("8bit", {}),
        pytest.param("4bit", {"fast_path": False}, marks=pytest.mark.slow),
        pytest.param("4bit", {"gradient_checkpointing": True}, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_results_do_not_depend_on_the_cache(card, tmp_path, mode, settings):
    found = [card.run(train, str(tmp_path), count, settings, mode) for count in range(NUM_LAYERS + 1)]
    for count, one in enumerate(found):
        assert outcome(one) == outcome(found[0])
        assert (one["messages"], one["left"], one["trained"]["cached_layers"]) == ([], [], count)
        assert one["cache"].get("bytes", 0) == one["planned_bytes"]
        assert one["cache"].get("waits", 0) <= 1 + 7 * (mode == "8bit")  # LLM.int8 itself waits in each kind of layer
        assert not one["cache"].get("visible")
        assert one["cache"].get("same_random_state", True)
        assert one["kept_bytes"] == found[0]["kept_bytes"]
    assert found[1]["planned_bytes"] * 2 == found[2]["planned_bytes"] > 0
    assert found[2]["quantized"]["dequantize_4bit"] == 0
    assert found[2]["quantized"]["gemm_4bit"] == 0


def test_out_of_memory_drops_the_cache_first(card, tmp_path):
    arguments = str(tmp_path), NUM_LAYERS, {}, "4bit", 200
    complete = card.run(train, *arguments)
    spare_bytes = complete["training_bytes"] - complete["planned_bytes"] // 2
    dropped = card.run(train, *arguments, None, spare_bytes)
    assert dropped["trained"] == complete["trained"] | {"cached_layers": 0}
    assert [message.rpartition(": ")[2] for message in dropped["messages"]] == ["dequantized weights are not cached."]
    assert outcome(dropped) == outcome(complete)
    assert dropped["left"] == []
    assert dropped["kept_bytes"] == complete["kept_bytes"]


def test_wrong_weights_are_not_used(card, uncached, tmp_path):
    found = card.run(train, str(tmp_path), NUM_LAYERS, {}, "4bit", 0, None, None, True)
    (message,) = found["messages"]
    assert (
        "a product of base_model.model.model.layers.0.self_attn.q_proj.base_layer differs from bitsandbytes' by "
        in message
    )
    assert (found["trained"]["cached_layers"], found["left"]) == (0, [])
    assert outcome(found) == outcome(uncached)


def test_cache_that_does_not_fit_is_left_out(card, uncached, tmp_path):
    found = card.run(train, str(tmp_path), NUM_LAYERS, {}, "4bit", 0, 100_000)
    (message,) = found["messages"]
    assert message.startswith("Dequantized weights are not cached: they do not fit into the GPU's memory.")
    assert (found["trained"]["cached_layers"], found["left"]) == (0, [])
    assert outcome(found) == outcome(uncached)


@pytest.mark.parametrize("mode", ["4bit", pytest.param("8bit", marks=pytest.mark.slow)])
def test_sft_caches_what_its_plan_says(card, tmp_path, mode):
    recipe = Path(__file__).parents[2] / "recipes/smoke.yaml"
    settings = [f"quantization.mode={mode}", "training.fast_path=true", "evaluation.questions=null"]
    done = card.command(["sft", recipe, *(word for s in settings for word in ("--set", s))], cwd=tmp_path)
    assert done.exit_code == 0, done.stderr
    assert "slower" not in done.stderr and "Out of memory" not in done.stderr
    plan, identity, estimate = (
        json.loads((tmp_path / f"runs/smoke-1/{name}.json").read_text()) for name in ("plan", "identity", "forecast")
    )
    assert plan["training"]["cached_layers"] == estimate["chosen"]["cached_layers"] == NUM_LAYERS
    assert not any("cached" in field for field in identity)  # a checkpoint can be continued with another cache
