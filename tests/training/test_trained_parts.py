"""Whole modules and rows of tokens beside LoRA: which parameters move, and that merged models are the same."""

import os
from dataclasses import dataclass, replace

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from lora_chat.config.plan import make_plan, plan_precision
from lora_chat.config.recipe import (
    AdapterSection,
    BaseSection,
    DataSection,
    QuantizationSection,
    Recipe,
    TrainingSection,
)
from lora_chat.data.encoding.encode import EncodedDialogue
from lora_chat.models.adapter import (
    adapter_weights,
    attach_adapter,
    count_trainable_parameters,
    load_adapter,
    merge_adapter,
    write_peft_adapter,
)
from lora_chat.models.adapter_files import read_adapter
from lora_chat.models.base_model import find_base, load_base_model, load_meta_model, load_tokenizer, read_config
from lora_chat.models.shape import read_shape
from lora_chat.planning.layer_memory import MicroBatch
from lora_chat.planning.trained_parts import measure_trained_parts
from lora_chat.planning.training_memory import estimate_training_memory
from lora_chat.planning.weight_memory import MemoryConfig, count_adapter_parameters
from lora_chat.system.hardware import Hardware
from lora_chat.training.fast_path.check_gradients import FastPathParts, GradientCheck
from lora_chat.training.fast_path.check_packing import add_trained_tokens
from lora_chat.training.fast_path.select import find_fast_path
from lora_chat.training.sft import train_sft
from lora_chat.training.training_run import TrainingRun

FP32 = Hardware("cpu", "test", 0, False, 2)
BF16 = Hardware("cpu", "test", 0, True, 2)
VOCABULARY = 259
EMBEDDING, HEAD = "model.embed_tokens", "lm_head"
ON_DEMAND = pytest.mark.skipif(os.environ.get("LORA_CHAT_ALL_BASES") != "1", reason="on demand")
IDS = torch.tensor([[10, 20, 261, 30, 260, 40]])


@dataclass(frozen=True)
class Case:
    """An adapter on a base with or without a tied head, and the names of what it trains beside LoRA."""

    tied: bool
    adapter: dict
    trained: set
    rows: int = VOCABULARY + 5
    new_ids: tuple = ()


ROWS = {f"{EMBEDDING}.token_adapter.trainable_tokens_delta.default"}
HEAD_ROWS = {f"{HEAD}.token_adapter.trainable_tokens_delta.default"}
WHOLE, WHOLE_HEAD = ({f"{name}.modules_to_save.default.weight"} for name in (EMBEDDING, HEAD))
NORMS = {f"model.layers.{i}.{name}.modules_to_save.default.weight" for i in (0, 1) for name in ("input_layernorm",)}
CASES = {
    "rows of a tied base": Case(True, {"trainable_tokens": (260, 261)}, ROWS),
    "rows of an untied base": Case(False, {"trainable_tokens": (260, 261)}, ROWS | HEAD_ROWS),
    "new rows of a tied base": Case(True, {"trainable_tokens": (260, 261)}, ROWS, VOCABULARY, (260, 261)),
    "new rows of an untied base": Case(
        False, {"trainable_tokens": (260, 261)}, ROWS | HEAD_ROWS, VOCABULARY, (260, 261)
    ),
    "spare rows": Case(False, {"trainable_tokens": (260, 261)}, ROWS | HEAD_ROWS, new_ids=(260, 261)),
    "tied head": Case(True, {"modules_to_save": ("lm_head",)}, WHOLE),
    "untied head": Case(False, {"modules_to_save": ("lm_head",)}, WHOLE_HEAD),
    "both": Case(False, {"modules_to_save": ("embed_tokens", "lm_head")}, WHOLE | WHOLE_HEAD),
    "norms": Case(False, {"modules_to_save": ("input_layernorm",)}, NORMS),
    "whole embedding, new rows of the head": Case(
        False,
        {"modules_to_save": ("embed_tokens",), "trainable_tokens": (260, 261)},
        WHOLE | HEAD_ROWS,
        VOCABULARY,
        (260, 261),
    ),
}


@pytest.fixture(scope="module")
def make_base(tmp_path_factory, cache_home):
    """Return a function that writes a random base of two layers, each kind once."""
    folders = {}

    def make(tied, rows):
        if (tied, rows) not in folders:
            folder = tmp_path_factory.mktemp("base")
            torch.manual_seed(1)
            config = AutoConfig.for_model(
                "llama",
                vocab_size=rows,
                hidden_size=32,
                intermediate_size=64,
                num_hidden_layers=2,
                eos_token_id=2,
                num_attention_heads=4,
                num_key_value_heads=2,
                tie_word_embeddings=tied,
                pad_token_id=0,
                bos_token_id=None,
            )
            model = AutoModelForCausalLM.from_config(config)
            with torch.no_grad():
                model.get_output_embeddings().weight.mul_(20)
            model.save_pretrained(folder)
            AutoTokenizer.from_pretrained(find_base(BaseSection(name="tiny-random")).folder).save_pretrained(folder)
            folders[tied, rows] = folder
        return find_base(BaseSection(name=str(folders[tied, rows])))

    return make


def load(base, hardware=FP32, mode="none"):
    return load_base_model(base, plan_precision(QuantizationSection(mode=mode), hardware))


def attach(base, case, hardware=FP32, mode="none"):
    return attach_adapter(load(base, hardware, mode), AdapterSection(rank=2, **case.adapter), 3, new_ids=case.new_ids)


def trained_parts(model):
    names = (name.removeprefix("base_model.model.") for name, p in model.named_parameters() if p.requires_grad)
    return {name for name in names if "lora_" not in name}


def logits(model, ids=IDS):
    with torch.no_grad():
        return model(input_ids=ids, use_cache=False).logits


def make_rows():
    generator = torch.Generator().manual_seed(0)
    rows = []
    for i in range(8):
        ids = torch.randint(3, VOCABULARY, (12 + 3 * i,), generator=generator).tolist()
        ids[4:6], ids[-3:-1] = [260, 261], [261, 260]
        rows.append(EncodedDialogue(ids, [-100] * 4 + ids[4:]))
    return rows


def train(model, base, folder, *, fast, hardware=FP32, steps=3):
    training = TrainingSection(max_steps=steps, learning_rate=1e-2, effective_batch_size=4, fast_path=fast)
    plan = make_plan(Recipe(data=DataSection(train="x"), training=training), hardware).training
    folder.mkdir()
    rows = make_rows()
    train_sft(
        TrainingRun(
            model=model,
            tokenizer=load_tokenizer(base),
            train_rows=rows,
            validation_rows=rows[:2],
            plan=plan,
            metrics_path=folder / "metrics.jsonl",
            bfloat16=hardware.bfloat16,
        )
    )
    return model.eval()


def assert_same(actual, expected):
    """Assert that logits differ by rounding only."""
    assert actual.shape == expected.shape
    assert float((actual - expected).norm()) < 1e-3 * float(expected.norm())


def perturb(model):
    """Change everything that is trained, as training would."""
    generator = torch.Generator().manual_seed(5)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data + torch.randn(parameter.shape, generator=generator) * 0.3
    return model.eval()


QUICK_CASES = ("new rows of an untied base", "tied head")
ALL_CASES = [name if name in QUICK_CASES else pytest.param(name, marks=ON_DEMAND) for name in CASES]


@pytest.mark.parametrize("name", ALL_CASES)
def test_saves_and_merges_the_same_function(make_base, tmp_path, name):
    case = CASES[name]
    base = make_base(case.tied, case.rows)
    model = attach(base, case)
    assert trained_parts(model) == case.trained
    known_ids = IDS.clamp(max=case.rows - 1)
    assert model.get_base_model().get_output_embeddings().out_features in (VOCABULARY, VOCABULARY + 3, VOCABULARY + 5)
    untouched = logits(load(base), known_ids)
    expected = logits(perturb(model))
    with model.disable_adapter():
        assert_same(logits(model, known_ids)[..., : case.rows], untouched)

    write_peft_adapter(model, tmp_path / "adapter")
    identity = make_identity({f"<{number}>": number for number in case.new_ids})
    stored = replace(read_adapter(tmp_path / "adapter"), identity=identity)
    reloaded = load_adapter(load(base), stored)
    assert_same(logits(reloaded), expected)
    with reloaded.disable_adapter():
        assert_same(logits(reloaded, known_ids)[..., : case.rows], untouched)
    assert_same(logits(reloaded), expected)

    merge_adapter(load_adapter(load(base), stored)).save_pretrained(tmp_path / "merged")
    opened = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert_same(logits(opened), expected)
    assert opened.config.tie_word_embeddings == case.tied


@pytest.mark.parametrize("name", ["new rows of a tied base", pytest.param("both", marks=ON_DEMAND)])
def test_both_paths_move_exactly_the_named_parameters(make_base, tmp_path, name):
    case = CASES[name]
    base = make_base(case.tied, case.rows)
    models = []
    for fast in (True, False):
        model = attach(base, case)
        before = {key: p.detach().clone() for key, p in model.named_parameters()}
        train(model, base, tmp_path / str(fast), fast=fast)
        after = dict(model.named_parameters())
        moved = {key.removeprefix("base_model.model.") for key in before if not torch.equal(before[key], after[key])}
        assert {key for key in moved if "lora_" not in key} == case.trained
        assert any("lora_B" in key for key in moved)
        models.append(model)
    if case.tied:  # the head's rows are those of the embedding
        base_model = models[0].get_base_model()
        assert torch.equal(base_model.get_input_embeddings().weight, base_model.get_output_embeddings().weight)
    for name, value in adapter_weights(models[0]).items():
        assert torch.allclose(value, adapter_weights(models[1])[name], atol=2e-3), name


@pytest.mark.parametrize(
    "name", ["rows of an untied base", *(pytest.param(name, marks=ON_DEMAND) for name in ("norms", "both"))]
)
def test_the_gradient_check_covers_trained_parts(make_base, name):
    case = CASES[name]
    model = attach(make_base(case.tied, case.rows), case, BF16)
    ids = add_trained_tokens(model, list(range(10, 58)))
    assert ("trainable_tokens" not in case.adapter) or {260, 261} <= set(ids[:24]) & set(ids[24:])
    fast_path = find_fast_path(model, ids)
    assert fast_path.packed_collator
    assert fast_path.fused
    assert (fast_path.head is None) == bool(case.trained & (HEAD_ROWS | WHOLE_HEAD))
    check = GradientCheck(model, ids, (), "sdpa")
    kinds = {name.removeprefix("base_model.model.") for name in check._names}
    assert case.trained <= kinds
    doubled = FastPathParts(fast_path.packed_collator, None, fused=False)
    with pytest.MonkeyPatch.context() as patch:  # a wrong gradient of one trained part is found
        index = next(i for i, name in enumerate(check._names) if name.removeprefix("base_model.model.") in case.trained)
        stock = check._stock_gradients

        def make_wrong(rows, attention):
            gradients = stock(rows, attention)
            gradients[index] = 2 * gradients[index]
            return gradients

        patch.setattr(check, "_stock_gradients", make_wrong)
        wrong = check.find_wrong_gradient(doubled)
    assert wrong is not None
    assert wrong.name == check._names[index].removeprefix("base_model.model.")


@pytest.mark.parametrize("name", ALL_CASES)
def test_the_plan_counts_what_is_trained(make_base, name):
    case = CASES[name]
    base = make_base(case.tied, VOCABULARY)
    shape = read_shape(read_config(base).to_dict(), "x")
    section = AdapterSection(rank=2, **case.adapter)
    new_ids = (260, 261) if "trainable_tokens" in case.adapter else ()
    counted = count_trainable_parameters(load_meta_model(base), section, new_ids)
    parts = measure_trained_parts(section, shape)
    planned = count_adapter_parameters(shape, MemoryConfig("none", 2, parts=parts))
    assert planned == pytest.approx(counted, rel=0.01)  # the plan does not know the rows that are added to the base
    config = MemoryConfig("none", 2, fast_path=True, bytes_per_value=2)
    batch = MicroBatch(100, 50, 40)
    more = estimate_training_memory(shape, replace(config, parts=parts), batch).total
    assert more >= estimate_training_memory(shape, config, batch).total + 12 * parts.count


def make_identity(new_tokens):
    from lora_chat.models.identity import Identity

    digest = "0" * 64
    return Identity(
        base="x", revision=None, weights=digest, tokenizer=digest, chat_template=digest, new_tokens=new_tokens or None
    )
