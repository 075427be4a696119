"""The random numbers of a step depend on the seed, the step, the dialogue and the module only."""

import pytest
import torch
import transformers
from test_equivalence import make_rows, train

from lora_chat.config.recipe import AdapterSection
from lora_chat.models.adapter import attach_adapter
from lora_chat.training.embedding_noise import add_embedding_noise
from lora_chat.training.fast_path.attention.interface import register_packed_attention
from lora_chat.training.fast_path.packed_batch import PackedBatchCollator
from lora_chat.training.step_randomness import (
    ONE_BY_ONE_NOTE,
    StepRandomness,
    draws_other_numbers,
    split_dialogues,
)
from lora_chat.training.token_keys import TokenKeys

ROUNDING = 1e-5
"""Largest relative difference of a gradient that the order of summation explains; measured: 5e-7."""
_SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 264}
_LLAMA = {**_SIZES, "intermediate_size": 48, "num_key_value_heads": 1}
_EXPERTS = {**_LLAMA, "num_local_experts": 4, "num_experts_per_tok": 2}
_GPT2 = {"n_embd": 32, "n_layer": 2, "n_head": 2, "vocab_size": 264, "n_positions": 64}
_BASE_DROPOUT = {"resid_pdrop": 0.2, "embd_pdrop": 0.2}
ARCHITECTURES = {
    "llama": ("llama", _LLAMA, False),
    "gpt2": ("gpt2", {**_GPT2, **_BASE_DROPOUT, "attn_pdrop": 0.0}, False),
    "gpt2 with dropout of attention": ("gpt2", {**_GPT2, **_BASE_DROPOUT, "attn_pdrop": 0.2}, True),
    "mixtral with jitter": ("mixtral", {**_EXPERTS, "router_jitter_noise": 0.2}, True),
}
"""Model type, settings, and whether dialogues must be computed one by one."""


def make_model(name, adapter=None):
    model_type, settings, _ = ARCHITECTURES[name]
    ids = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    config = transformers.AutoConfig.for_model(model_type, **settings, **ids)
    torch.manual_seed(0)
    base = transformers.AutoModelForCausalLM.from_config(config, attn_implementation=register_packed_attention())
    model = attach_adapter(base, AdapterSection(rank=4, **(adapter or {"dropout": 0.3})), seed=1)
    generator = torch.Generator().manual_seed(2)
    for parameter_name, parameter in model.named_parameters():
        if "lora_B" in parameter_name:
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.1
    return model.train()


@pytest.fixture(scope="module")
def models():
    return {name: make_model(name) for name in ARCHITECTURES}


def pack(rows):
    return PackedBatchCollator(share_prefix=False)([{"input_ids": r.input_ids, "labels": r.labels} for r in rows])


def pad(rows):
    longest = max(len(row.input_ids) for row in rows)

    def fill(values, filler):
        return torch.tensor([v + [filler] * (longest - len(v)) for v in values])

    return {
        "input_ids": fill([row.input_ids for row in rows], 0),
        "attention_mask": fill([[1] * len(row.input_ids) for row in rows], 0),
        "labels": fill([row.labels for row in rows], -100),
    }


def compute_gradient(randomness, batches, step=4):
    """Return the gradient of the summed loss of micro-batches; PyTorch's generators are at another place each time."""
    model = randomness._model
    model.zero_grad()
    with randomness.used_in_model():
        for batch in (part for whole in batches for part in randomness.split(whole)):
            inputs = {name: value for name, value in batch.items() if name not in ("labels", "supervised")}
            with randomness.seeded(batch, step):
                logits = model(**inputs, use_cache=False).logits[:, :-1].flatten(0, 1)
                targets = batch["labels"][:, 1:].flatten()
                torch.nn.functional.cross_entropy(logits, targets, reduction="sum").backward()
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.requires_grad])


def difference(left, right):
    return float((left - right).norm() / right.norm())


ROWS = make_rows(6, shared=6)
LAYOUTS = {
    "alone": [pack([row]) for row in ROWS],
    "another order": [pack([ROWS[i] for i in (5, 2, 0, 4, 1, 3)])],
    "two micro-batches": [pack(ROWS[3:]), pack(ROWS[:3])],
    "padded": [pad(ROWS[:4]), pad(ROWS[4:])],
}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_gradient_of_a_step_does_not_depend_on_its_micro_batches(models, name):
    one_by_one = draws_other_numbers(models[name], ROWS[0].input_ids)
    assert one_by_one == ARCHITECTURES[name][2]
    randomness = StepRandomness(models[name], 7, one_by_one=one_by_one)
    packed = compute_gradient(randomness, [pack(ROWS)])
    for layout, batches in LAYOUTS.items():
        if layout == "padded" or not one_by_one:  # otherwise the parts of the layouts differ only in their order
            assert difference(compute_gradient(randomness, batches), packed) < ROUNDING, layout
    assert difference(compute_gradient(randomness, [pack(ROWS)], step=5), packed) > 0.1
    other_seed = StepRandomness(models[name], 8, one_by_one=one_by_one)
    assert difference(compute_gradient(other_seed, [pack(ROWS)]), packed) > 0.1


@pytest.mark.parametrize("name", ["gpt2", "mixtral with jitter"])
def test_gradient_without_keys_depends_on_the_micro_batches(models, name):
    """Show that the test above can fail: PyTorch's generators draw in the order of the batch."""
    randomness = StepRandomness(models[name], 7)
    if not ARCHITECTURES[name][2]:
        randomness._dropouts = {}
    alone, packed = (compute_gradient(randomness, LAYOUTS[layout]) for layout in ("alone", "another order"))
    assert difference(alone, packed) > 100 * ROUNDING


@pytest.mark.parametrize("name", ["llama", "gpt2 with dropout of attention"])
def test_gradient_checkpointing_repeats_the_same_numbers(models, name):
    model = models[name]
    randomness = StepRandomness(model, 7, noise_alpha=5.0, one_by_one=ARCHITECTURES[name][2])
    plain = compute_gradient(randomness, [pack(ROWS)])
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    model.enable_input_require_grads()
    try:
        assert torch.equal(compute_gradient(randomness, [pack(ROWS)]), plain)
    finally:
        model.gradient_checkpointing_disable()
        model.disable_input_require_grads()


@pytest.mark.parametrize("adapter", [{"dropout": 0.5, "variant": "dora"}, {"dropout": 0.0}])
def test_variants_and_noise_do_not_depend_on_the_micro_batches(adapter):
    randomness = StepRandomness(make_model("llama", adapter), 7, noise_alpha=20.0)
    packed = compute_gradient(randomness, [pack(ROWS)])
    assert difference(compute_gradient(randomness, LAYOUTS["alone"]), packed) < ROUNDING
    assert difference(compute_gradient(randomness, LAYOUTS["padded"]), packed) < ROUNDING
    assert difference(compute_gradient(randomness, [pack(ROWS)], step=5), packed) > 0.1


def test_evaluation_is_not_random_and_leaves_nothing_behind(models):
    model = models["gpt2 with dropout of attention"]
    randomness = StepRandomness(model, 7, noise_alpha=5.0, one_by_one=True)
    batch = split_dialogues(pad(ROWS))[0]
    ids = batch["input_ids"]
    state = torch.get_rng_state()
    with randomness.used_in_model():
        with pytest.raises(KeyError), randomness.seeded(batch, 0):
            torch.rand(3)
            raise KeyError
        model.eval()
        with randomness.seeded(batch, 0):
            inside = model(input_ids=ids).logits
    assert torch.equal(model(input_ids=ids).logits, inside)
    model.train()
    assert torch.equal(torch.get_rng_state(), state)
    assert all("forward" not in vars(module) for module in model.modules())


def test_a_run_without_randomness_is_left_as_it_is():
    randomness = StepRandomness(make_model("llama", {"dropout": 0.0}), 7)
    assert not randomness.is_used
    with randomness.seeded({"no": "batch"}, 0):
        pass


def test_random_numbers_of_a_zero_rate_of_layer_drop_are_harmless():
    """OPT draws a number for each layer, and compares it with zero."""
    sizes = {"hidden_size": 32, "ffn_dim": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 264}
    config = transformers.OPTConfig(**sizes, word_embed_proj_dim=32, max_position_embeddings=64, dropout=0.0)
    model = attach_adapter(transformers.OPTForCausalLM(config), AdapterSection(rank=4, dropout=0.3), seed=1)
    assert not draws_other_numbers(model, ROWS[0].input_ids)


def test_a_rare_skip_of_layers_is_noticed():
    """The two passes of the check would skip the same layers, none of them."""
    sizes = {"hidden_size": 32, "ffn_dim": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 264}
    config = transformers.OPTConfig(
        **sizes, word_embed_proj_dim=32, max_position_embeddings=64, dropout=0.0, layerdrop=0.01
    )
    model = attach_adapter(transformers.OPTForCausalLM(config), AdapterSection(rank=4), seed=1)
    assert draws_other_numbers(model, ROWS[0].input_ids)


def test_keys_depend_on_seed_step_ids_and_position_only():
    alone = [TokenKeys.of_batch(pack([row]), 3, 9).keys[0] for row in ROWS]
    assert torch.equal(TokenKeys.of_batch(pack(ROWS), 3, 9).keys[0], torch.cat(alone))
    padded = TokenKeys.of_batch(pad(ROWS), 3, 9).keys
    for keys, row in zip(alone, padded, strict=True):
        assert torch.equal(row[: len(keys)], keys)
    everything = torch.cat([*alone, *(TokenKeys.of_batch(pack(ROWS), *pair).keys[0] for pair in ((4, 9), (3, 10)))])
    assert len(everything.unique()) == len(everything)


def test_tokens_after_the_last_trained_one_change_no_key():
    row, tail = ROWS[0], [5, 6, 7]
    longer = type(row)(row.input_ids + tail, row.labels + [-100] * len(tail))
    short, long = TokenKeys.of_batch(pad([row]), 1, 2), TokenKeys.of_batch(pad([longer]), 1, 2)
    assert torch.equal(long.keys[:, : len(row.input_ids)], short.keys)
    assert int(long.lengths[0, 0]) == len(row.input_ids)


def test_noise_has_the_scale_of_each_dialogue():
    lengths = torch.tensor([100] * 100 + [400] * 400)[None]
    tokens = TokenKeys(torch.arange(500)[None], lengths)
    noise = add_embedding_noise(torch.zeros(1, 500, 64), tokens, 0, 5.0)[0]
    for part, length in ((noise[:100], 100), (noise[100:], 400)):
        assert float(part.abs().max()) == pytest.approx(5 / (length * 64) ** 0.5, rel=1e-3)
        assert float(part.abs().mean()) == pytest.approx(2.5 / (length * 64) ** 0.5, rel=0.03)
        assert abs(float(part.mean())) < 0.05 / (length * 64) ** 0.5 * 5


def test_an_adapter_does_not_depend_on_micro_batches_padding_or_checkpointing(cache_home, tmp_path, messages):
    settings = {"dropout": 0.3, "epochs": 1, "max_steps": 2, "warmup_share": 0.0, "neftune_alpha": 5.0}

    def adapter(name, **changes):
        model, *_ = train(make_rows(8, shared=6), tmp_path / name, **settings, **changes)
        return torch.cat([p.detach().flatten() for p in model.parameters() if p.requires_grad])

    together = adapter("together", micro_batch_size=8)
    alone = adapter("alone", micro_batch_size=1, gradient_checkpointing=True)
    padded = adapter("padded", micro_batch_size=4, fast_path=False)
    assert float((alone - together).abs().max()) < 1e-4
    assert float((padded - together).abs().max()) < 1e-4
    assert ONE_BY_ONE_NOTE not in messages
