"""Common architectures load, train only their adapter, save and load again in every precision."""

import json
import os

import pytest
import torch

from lora_chat.config.plan import make_plan, plan_precision
from lora_chat.config.recipe import (
    AdapterSection,
    BaseSection,
    DataSection,
    QuantizationSection,
    Recipe,
    TrainingSection,
)
from lora_chat.data.encoding.chat_template import install_template, render_ids
from lora_chat.data.encoding.encode import encode_dialogue
from lora_chat.data.parsing.messages import parse_dialogue
from lora_chat.evaluation.loss import evaluate_loss
from lora_chat.inference.generation import generate_replies
from lora_chat.models.adapter import attach_adapter, count_parameters, load_adapter
from lora_chat.models.adapter_files import read_adapter, save_adapter
from lora_chat.models.base_model import find_base, load_base_model, load_tokenizer
from lora_chat.models.identity import compute_identity
from lora_chat.models.stop_tokens import read_stop_ids
from lora_chat.system.hardware import Hardware
from lora_chat.training.sft import train_sft
from lora_chat.training.training_run import TrainingRun

CPU = Hardware("cpu", "test", 0, True, 2)
TRAINING = TrainingSection(epochs=8, effective_batch_size=4, micro_batch_size=2, learning_rate=2e-2)
QUANTISED = {"4bit": "Linear4bit", "8bit": "Linear8bitLt"}
NAMES = ("llama", "qwen2", "qwen3", "mistral", "gemma", "gemma2", "phi", "phi3", "gpt2")
QUICK = {("llama", "4bit"), ("gpt2", "none")}
SLOW = {*((name, "4bit") for name in ("qwen3", "gemma2", "phi3", "gpt2")), ("llama", "none"), ("llama", "8bit")}
ON_DEMAND = pytest.mark.skipif(os.environ.get("LORA_CHAT_ALL_BASES") != "1", reason="on demand")
CASES = [
    pytest.param(
        name, mode, marks=[] if (name, mode) in QUICK else pytest.mark.slow if (name, mode) in SLOW else ON_DEMAND
    )
    for name in NAMES
    for mode in ("4bit", "8bit", "none")
]
DIALOGUES = [
    parse_dialogue({"messages": [{"role": "user", "content": q}, {"role": "assistant", "content": a}]})
    for q, a in [("one?", "two"), ("red or blue?", "blue"), ("up?", "down, of course"), ("hi", "hello there")]
]


@pytest.mark.parametrize(("architecture", "mode"), CASES)
def test_trains_only_the_adapter_and_loads_it_again(architecture, mode, random_base, tmp_path):
    base = find_base(BaseSection(name=str(random_base(architecture))))
    tokenizer = load_tokenizer(base)
    template = install_template(tokenizer)
    stop_ids = read_stop_ids(base, tokenizer)
    rows = [row for dialogue in DIALOGUES for row in encode_dialogue(dialogue, tokenizer, stop_ids)]
    precision = plan_precision(QuantizationSection(mode=mode), CPU)
    model = load_base_model(base, precision)
    kinds = {type(module).__name__ for module in model.modules()}
    assert mode == "none" or QUANTISED[mode] in kinds

    adapted = attach_adapter(model, AdapterSection(rank=4))
    assert 0 < count_parameters(adapted).share < 0.5
    before = {name: p.detach().clone() for name, p in adapted.named_parameters()}
    first = evaluate_loss(adapted, rows)
    plan = make_plan(Recipe(data=DataSection(train="x"), training=TRAINING), CPU).training
    train_sft(TrainingRun(adapted, tokenizer, rows, rows, plan, tmp_path / "metrics.jsonl", bfloat16=True))

    moved = {name for name, p in adapted.named_parameters() if not torch.equal(p.float(), before[name].float())}
    assert moved
    assert all("lora_" in name for name in moved)
    assert {name for name in before if "lora_B" in name} <= moved
    last = evaluate_loss(adapted, rows)
    assert last < first - 0.05
    steps = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [step["step"] for step in steps] == list(range(1, 9))
    assert steps[-1]["supervised_tokens"] == 8 * sum(row.supervised_tokens for row in rows)

    save_adapter(adapted, tmp_path / "adapter", compute_identity(base, tokenizer), template, "card")
    reloaded = load_adapter(load_base_model(base, precision), read_adapter(tmp_path / "adapter"))
    assert evaluate_loss(reloaded, rows) == pytest.approx(last, abs=1e-6)
    prompts = [render_ids(tokenizer, d.as_dicts[:1], add_generation_prompt=True) for d in DIALOGUES]
    replies = generate_replies(reloaded, tokenizer, prompts, stop_ids, 5)
    assert len(replies) == len(prompts)
