import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lora_chat.config.load import read_recipe
from lora_chat.config.plan import Plan, PrecisionPlan, make_plan, plan_inference_precision
from lora_chat.config.recipe import QuantizationSection, Recipe
from lora_chat.data.lengths import RowLengths
from lora_chat.errors import RecipeError
from lora_chat.planning.validation import count_measurements, resolve_validation
from lora_chat.system.hardware import Hardware

RECIPES = Path(__file__).parents[2] / "recipes"
# Add a new recipe here: a glob alone would not notice one that it misses.
TASKS = ("chat-zh", "classification", "math", "pretraining", "pretraining-chat", "reading", "service", "story")
EXPECTED = [
    *(f"{name}.yaml" for name in ("gpu-12gb-4bit", "gpu-16gb-4bit", "gpu-24gb-none", "gpu-8gb-4bit")),
    "quickstart.yaml",
    "smoke.yaml",
    *(f"tasks/{name}.yaml" for name in (*TASKS, "summary", "translation")),
]


def gpu(gigabytes, bfloat16=True, capability=(8, 6)):
    return Hardware("cuda", "a GPU", gigabytes * 10**9, bfloat16, 8, index=0, capability=capability)


def cpu(bfloat16=False):
    return Hardware("cpu", "a CPU", 8 * 10**9, bfloat16, 2)


MACHINES = {"8 GB": gpu(8), "12 GB": gpu(12), "24 GB": gpu(24), "CPU": cpu()}


def recipe(**sections):
    return Recipe.model_validate({"data": {"train": "/d.jsonl"}} | sections)


def test_lists_every_recipe_of_the_repository():
    found = sorted(p.relative_to(RECIPES).as_posix() for p in RECIPES.glob("**/*.y*ml"))
    assert found == sorted(EXPECTED)


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("name", EXPECTED)
def test_plans_every_recipe_for_every_machine(name, machine):
    read = read_recipe(RECIPES / name)
    plan = make_plan(read, MACHINES[machine])
    training = plan.training
    assert training.micro_batch_size * training.gradient_accumulation_steps == read.training.effective_batch_size
    assert plan.precision.device == ("cpu" if machine == "CPU" else "cuda")
    assert Path(plan.data.train).is_file()


@pytest.mark.parametrize("hardware", [cpu(), gpu(24)])
def test_plan_depends_only_on_recipe_and_hardware(hardware):
    asked = recipe(training={"effective_batch_size": 12})
    before = asked.model_dump()
    assert make_plan(asked, hardware) == make_plan(asked, hardware)
    assert asked.model_dump() == before


def test_plan_keeps_settings_of_the_recipe():
    asked = recipe(training={"learning_rate": 1e-3, "max_steps": 7, "seed": 3}, adapter={"rank": 3})
    plan = make_plan(asked, cpu())
    assert {key: getattr(plan.training, key) for key in ("learning_rate", "max_steps", "seed")} == {
        "learning_rate": 1e-3,
        "max_steps": 7,
        "seed": 3,
    }
    assert (plan.base, plan.adapter, plan.data) == (asked.base, asked.adapter, asked.data)
    assert (plan.evaluation, plan.output) == (asked.evaluation, asked.output)


@pytest.mark.parametrize("hardware", [cpu(), gpu(8)])
def test_plan_resolves_every_auto(hardware):
    settings = make_plan(recipe(), hardware).training.model_dump(exclude={"memory"})  # a limit, not a choice
    assert "auto" not in settings.values()


@settings(deadline=None, max_examples=200, derandomize=True)
@given(whole=st.integers(1, 5000), hardware=st.sampled_from([cpu(), gpu(8)]))
def test_auto_micro_batch_size_divides_effective_batch_size(whole, hardware):
    training = make_plan(recipe(training={"effective_batch_size": whole}), hardware).training
    assert training.micro_batch_size * training.gradient_accumulation_steps == whole
    assert 1 <= training.micro_batch_size <= 8


@pytest.mark.parametrize(
    ("hardware", "micro", "checkpointing", "fast_path"), [(cpu(), 8, False, True), (gpu(8), 4, True, True)]
)
def test_defaults_on_cpu_and_gpu(hardware, micro, checkpointing, fast_path):
    training = make_plan(recipe(), hardware).training
    assert training.micro_batch_size == micro
    assert training.gradient_checkpointing is checkpointing
    assert training.fast_path is fast_path


@pytest.mark.parametrize(
    ("hardware", "expected"),
    [
        (gpu(8, capability=(8, 0)), True),
        (gpu(8, capability=(12, 0)), True),
        (gpu(8, bfloat16=False, capability=(7, 5)), False),
        (gpu(8, bfloat16=True, capability=None), False),  # an AMD card
    ],
)
def test_fast_path_is_the_default_on_gpus_with_its_attention_kernel(hardware, expected):
    assert make_plan(recipe(), hardware).training.fast_path is expected
    assert make_plan(recipe(training={"fast_path": True}), hardware).training.fast_path is hardware.bfloat16


def test_fast_path_is_off_by_default_in_fp32_on_a_gpu():
    assert not make_plan(recipe(quantization={"dtype": "float32"}), gpu(8)).training.fast_path
    assert make_plan(recipe(quantization={"dtype": "float32"}), cpu(bfloat16=True)).training.fast_path


@pytest.mark.parametrize("hardware", [cpu(), gpu(8)])
@pytest.mark.parametrize("asked", [True, False])
def test_plan_does_not_change_explicit_settings(hardware, asked):
    training = {"effective_batch_size": 6, "micro_batch_size": 2, "gradient_checkpointing": asked, "fast_path": asked}
    decided = make_plan(recipe(training=training), hardware).training
    assert decided.fast_path is asked
    assert decided.micro_batch_size == 2
    assert decided.gradient_accumulation_steps == 3
    assert decided.gradient_checkpointing is asked


def test_rejects_micro_batch_size_that_does_not_divide_and_lists_divisors():
    with pytest.raises(RecipeError) as caught:
        make_plan(recipe(training={"effective_batch_size": 12, "micro_batch_size": 5}), cpu())
    message = str(caught.value)
    assert "training.micro_batch_size" in message
    assert "1, 2, 3, 4, 6, 12." in message


def test_rejects_micro_batch_size_above_effective_batch_size():
    with pytest.raises(RecipeError, match=r"1, 2, 4\."):
        make_plan(recipe(training={"effective_batch_size": 4, "micro_batch_size": 8}), cpu())


@pytest.mark.parametrize(
    ("hardware", "dtype"),
    [
        (cpu(bfloat16=True), "bfloat16"),
        (cpu(bfloat16=False), "float32"),
        (gpu(8, bfloat16=True), "bfloat16"),
        (gpu(8, bfloat16=False), "float16"),
    ],
)
@pytest.mark.parametrize("mode", ["4bit", "8bit", "none"])
def test_uses_bf16_only_if_the_processor_has_it(hardware, dtype, mode):
    precision = make_plan(recipe(quantization={"mode": mode}), hardware).precision
    assert precision.dtype == dtype
    assert precision.mode == mode
    assert precision.device == hardware.device
    fp32 = make_plan(recipe(quantization={"mode": mode, "dtype": "float32"}), hardware).precision
    assert fp32 == precision.model_copy(update={"dtype": "float32"})


@pytest.mark.parametrize(
    ("trained", "hardware", "dtype"),
    [
        ("float16", gpu(8, bfloat16=False), "float16"),
        ("float16", gpu(8, bfloat16=True), "float16"),
        ("float16", cpu(bfloat16=True), "float32"),
        ("float16", cpu(bfloat16=False), "float32"),
        ("bfloat16", gpu(8, bfloat16=False), "float32"),
        ("float32", gpu(8, bfloat16=False), "float32"),
        ("float32", cpu(bfloat16=True), "bfloat16"),
        (None, gpu(8, bfloat16=True), "bfloat16"),
        (None, gpu(8, bfloat16=False), "float32"),
    ],
)
def test_never_uses_a_trained_adapter_in_a_dtype_of_smaller_range(trained, hardware, dtype):
    quantization = QuantizationSection(mode="8bit", double_quantization=False)
    precision = plan_inference_precision(quantization, hardware, trained)
    assert precision == PrecisionPlan(device=hardware.device, mode="8bit", double_quantization=False, dtype=dtype)


@pytest.mark.parametrize("targets", [("lm_head",), ("q_proj", "lm_head"), ("model.lm_head",)])
def test_rejects_adapter_on_lm_head(targets):
    with pytest.raises(RecipeError, match="all-linear") as caught:
        make_plan(recipe(adapter={"target_modules": targets}), gpu(24))
    assert "adapter.target_modules" in str(caught.value)


def test_accepts_other_target_modules():
    plan = make_plan(recipe(adapter={"target_modules": ("q_proj", "v_proj")}), cpu())
    assert plan.adapter.target_modules == ("q_proj", "v_proj")


def test_fp16_uses_the_stock_path_even_if_the_recipe_wants_the_fast_one():
    turing = gpu(8, bfloat16=False, capability=(7, 5))
    assert not make_plan(recipe(training={"fast_path": True}), turing).training.fast_path
    assert make_plan(recipe(training={"fast_path": True}), gpu(8)).training.fast_path


@pytest.mark.parametrize(
    ("mode", "capability", "advice"),
    [("8bit", (7, 0), "4bit"), ("8bit", (6, 1), "4bit"), ("8bit", (5, 2), "none"), ("4bit", (5, 2), "none")],
)
def test_a_gpu_without_quantized_kernels_is_refused(mode, capability, advice):
    card = gpu(8, bfloat16=False, capability=capability)
    with pytest.raises(RecipeError, match=f"quantization.mode={advice}"):
        make_plan(recipe(quantization={"mode": mode}), card)
    assert make_plan(recipe(quantization={"mode": advice}), card)


def test_a_stored_plan_keeps_its_lists():
    data = {
        "train": ("/a.jsonl", {"path": ("/b", "/c"), "columns": {"user": ("x", "y"), "assistant": "z"}}),
        "loss": "last",
    }
    plan = make_plan(recipe(data=data | {"keep_tokens": ("<a>",)}), cpu())
    assert plan.data.turns == "last"
    assert Plan.model_validate_json(plan.model_dump_json()) == plan


def test_refuses_validation_losses_without_a_validation_set():
    without = {"train": "/d.jsonl", "validation_share": 0.0}
    with pytest.raises(RecipeError, match="each_epoch needs a validation set"):
        make_plan(recipe(data=without, evaluation={"each_epoch": True}), cpu())
    data = without | {"validation": "/v.jsonl"}
    assert make_plan(recipe(data=data, evaluation={"each_epoch": True}), cpu()).data.has_validation
    assert not make_plan(recipe(data=without), cpu()).data.has_validation


WITHOUT_VALIDATION = {"train": "/d.jsonl", "validation_share": 0.0}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"evaluation": {"each_epoch": False}, "training": {"early_stopping": 2}}, "early_stopping needs measurements"),
        ({"data": WITHOUT_VALIDATION, "training": {"early_stopping": 2}}, "validation set"),
        (
            {"data": WITHOUT_VALIDATION, "evaluation": {"every_steps": 2}},
            "every_steps needs",
        ),
    ],
)
def test_refuses_a_choice_of_steps_without_measurements(settings, message):
    with pytest.raises(RecipeError, match=message):
        make_plan(recipe(**settings), cpu())


def test_metrics_of_replies_do_not_choose_a_step():
    with pytest.raises(ValueError, match="bleu is not measured during training"):
        recipe(training={"keep_by": "bleu"})


def test_plans_of_earlier_versions_keep_the_last_step():
    plan = make_plan(recipe(), cpu())
    fields = plan.model_dump(mode="json")
    assert plan.training.keep == "best"
    for name in ("keep", "keep_by", "early_stopping"):
        del fields["training"][name]
    assert Plan.model_validate_json(json.dumps(fields)).training.keep == "last"


@pytest.mark.parametrize(
    ("rows", "held_out", "settings", "measurements"),
    [
        (100, 10, {}, 3),
        (100, 30, {}, 0),  # 15 % of the training time
        (100, 7, {}, 0),  # too few to choose by
        (100, 0, {}, 0),
        (100, 10, {"training": {"epochs": 1.0}}, 0),  # nothing to choose from
        (100, 10, {"training": {"epochs": 2.5}}, 3),
        (100, 30, {"evaluation": {"each_epoch": True}}, 3),
        (100, 10, {"evaluation": {"each_epoch": False}}, 0),
        (100, 10, {"evaluation": {"every_steps": 5}}, 5),  # steps 5, 10, 15, 20 and the last one, 21
        (100, 10, {"evaluation": {"every_steps": 5, "each_epoch": True}}, 7),
        (100, 30, {"training": {"early_stopping": 2}}, 3),
    ],
)
def test_measures_each_epoch_where_it_is_cheap(rows, held_out, settings, measurements):
    lengths = [RowLengths(*(np.full(count, 10) for _ in range(3))) for count in (rows, held_out)]
    plan = resolve_validation(make_plan(recipe(**settings), cpu()), *lengths)
    assert count_measurements(plan, rows) == measurements
    assert plan.evaluation.measures_in_training == bool(measurements)


def test_early_stopping_needs_enough_rows():
    lengths = [RowLengths(*(np.full(count, 10) for _ in range(3))) for count in (100, 7)]
    with pytest.raises(RecipeError, match="7 rows, which are too few"):
        resolve_validation(make_plan(recipe(training={"early_stopping": 1}), cpu()), *lengths)
