"""The planned memory of training agrees with the bytes that an emulated card counts.

The emulation computes RMS norm in parts, as on a CPU; CUDA has one kernel for it, so a stand-in counts its tensors.
"""

import json
import tempfile
from pathlib import Path

import pytest

CASES = [
    ({"mode": "4bit"}, 0.03),
    ({"mode": "none", "settings": {"gradient_checkpointing": 2}, "lengths": [200, 100, 60, 40]}, 0.04),
    ({"mode": "8bit", "lengths": [100] * 4}, 0.05),
    ({"architecture": "qwen3", "mode": "4bit", "settings": {"gradient_checkpointing": True}}, 0.04),
    ({"architecture": "phi3", "mode": "4bit"}, 0.05),
    ({"architecture": "gemma2", "mode": "4bit", "lengths": [150, 100, 60, 40]}, 0.06),
]


def case_name(case):
    return " ".join(str(value) for value in case.values())


@pytest.mark.parametrize(
    ("case", "error"),
    [
        pytest.param(*case, marks=[pytest.mark.slow] if number else [], id=case_name(case[0]))
        for number, case in enumerate(CASES)
    ],
)
def test_planned_training_memory_is_what_the_card_counts(card, case, error):
    measured = card.run(measure_training, case, memory=2**34)
    assert measured["planned"] == pytest.approx(measured["peak"], rel=error), measured


def measure_training(case):
    """Train two steps on the fast path, and return the peak bytes of the second one and the planned ones."""
    import fake_card

    from lora_chat.config.plan import make_plan, plan_precision
    from lora_chat.config.recipe import AdapterSection, BaseSection, QuantizationSection, Recipe
    from lora_chat.models.adapter import attach_adapter
    from lora_chat.models.base_model import find_base, load_base_model, load_tokenizer
    from lora_chat.system.hardware import detect_hardware
    from lora_chat.training.sft import train_sft
    from lora_chat.training.training_run import TrainingRun

    replace_rms_norm()
    peaks = record_peaks(fake_card)
    architecture, mode = case.get("architecture", "llama"), case["mode"]
    lengths = case.get("lengths", [100] * 5)
    folder = Path(tempfile.mkdtemp())
    config = write_base(architecture, folder)
    hardware = detect_hardware()
    training = {"max_steps": 2, "effective_batch_size": len(lengths), "fast_path": True, "memory": "unlimited"}
    training |= {"gradient_checkpointing": False, **case.get("settings", {})}
    quantization = {"mode": mode}
    recipe = Recipe.model_validate({"data": {"train": "x"}, "training": training, "quantization": quantization})
    plan = make_plan(recipe, hardware)
    base = find_base(BaseSection(name=str(folder)))
    model = load_base_model(base, plan_precision(QuantizationSection(mode=mode), hardware))
    train_sft(
        TrainingRun(
            model=attach_adapter(model, AdapterSection(), 3),
            tokenizer=load_tokenizer(base),
            train_rows=make_rows(lengths),
            validation_rows=[],
            plan=plan.training,
            metrics_path=folder / "metrics.jsonl",
            bfloat16=True,
        )
    )
    return {"peak": peaks[-1], "planned": plan_memory(config, plan, lengths)}


def write_base(architecture, folder):
    """Write a random base with the tokenizer of tiny-random, and return its config."""
    from transformers import AutoTokenizer

    from lora_chat.models.bundled import find_bundled_base
    from lora_chat.pipeline.machine_benchmark_worker import write_random_model
    from tests.planning.shapes import Widths, make_config

    config = make_config(architecture, Widths(256, 768, 4, 2, 64), 4, 1024, tied=False)
    fields = json.loads(config.to_json_string(use_diff=False))
    write_random_model(fields, 4, folder)
    AutoTokenizer.from_pretrained(find_bundled_base("tiny-random")).save_pretrained(folder)
    return fields


def make_rows(lengths):
    """Return random dialogues whose second half is supervised."""
    import torch

    from lora_chat.data.encoding.encode import EncodedDialogue

    generator = torch.Generator().manual_seed(1)
    texts = [torch.randint(3, 259, (length,), generator=generator).tolist() for length in lengths]
    return [EncodedDialogue(ids, [-100] * (len(ids) // 2) + ids[len(ids) // 2 :]) for ids in texts]


def plan_memory(config, plan, lengths):
    """Return the planned bytes of training without those that the emulated card does not have."""
    import numpy as np

    from lora_chat.data.lengths import DataLengths, RowLengths
    from lora_chat.models.shape import read_shape
    from lora_chat.planning.settings_search import memory_config_from_plan
    from lora_chat.planning.training_memory import estimate_training_memory
    from lora_chat.planning.workload import compute_workload

    tokens = np.array(lengths)
    rows = RowLengths(tokens, tokens, tokens - tokens // 2)
    workload = compute_workload(DataLengths(rows, rows, (), 0), plan.training)
    shape = read_shape(config, "random")
    return estimate_training_memory(shape, memory_config_from_plan(plan, shape), workload.largest).total


def record_peaks(fake_card):
    """Return a list that receives the peak bytes of each step."""
    from transformers.trainer_callback import CallbackHandler

    peaks, end_step = [], CallbackHandler.on_step_end

    def on_step_end(self, *arguments, **options):
        control = end_step(self, *arguments, **options)
        peaks.append(fake_card.peak_bytes())
        fake_card.reset_counters()
        return control

    CallbackHandler.on_step_end = on_step_end
    return peaks


def replace_rms_norm():
    """Replace the RMS norm of the fused layers by one that keeps what CUDA's kernel keeps."""
    import torch

    from lora_chat.training.fast_path.layers import rms_norm as module

    to_host, to_card = torch.ops.fake_card.to_host, torch.ops.fake_card.to_card
    stock = torch.nn.functional.rms_norm

    class Norm(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, size, eps):
            ctx.save_for_backward(x, x.new_empty(x.shape[:-1], dtype=torch.float32))
            ctx.settings = size, eps
            return to_card(stock(to_host(x.detach()).float(), size, eps=eps).to(x.dtype), x.device.index)

        @staticmethod
        def backward(ctx, grad_out):
            x = ctx.saved_tensors[0]
            size, eps = ctx.settings
            with torch.enable_grad():
                leaf = to_host(x.detach()).float().requires_grad_()
                normed = stock(leaf, size, eps=eps)
                (grad_x,) = torch.autograd.grad(normed, leaf, to_host(grad_out.detach()).float())
            return to_card(grad_x.to(x.dtype), x.device.index), None, None

    def rms_norm(x, size, weight=None, eps=None):
        return Norm.apply(x, size, eps) if x.is_cuda else stock(x, size, weight, eps)

    module.stock_rms_norm = rms_norm
