"""Training on an emulated card gives the CPU's losses, on every path and for every fused architecture."""

import os

import pytest


def train(asked):
    import card_training

    return card_training.train(asked)


def train_on_both(asked):
    import card_training

    return card_training.train_on_both(asked)


def check_both(results, notes=()):
    """Assert that training was on the card, without a fallback, and with the CPU's results."""
    on_card, on_cpu = results
    assert (on_card["device"], on_cpu["device"]) == ("cuda:0", "cpu")
    assert len(on_card["notes"]) == len(notes)
    assert all(part in note for part, note in zip(notes, on_card["notes"], strict=True))
    assert on_card["losses"] == pytest.approx(on_cpu["losses"], abs=LARGEST_DIFFERENCE)
    assert on_card["peak"] > 0


def slow(*values):
    return pytest.param(*values, marks=pytest.mark.slow)


LARGEST_DIFFERENCE = 0.002
LARGEST_DIFFERENCE_OF_INT8 = 0.004
"""Largest difference of a loss between the card and the CPU in the same precision."""
READS = {True: 3, False: 10}
"""Waits in each step until values reach the host, on the fast path and on the stock path."""
UPLOADS = {True: 8, False: 3}
"""Waits in each step until a tensor is on the card, on the fast path and on the stock path."""
READS_OF_INT8 = 14
"""Additional waits in each step of the stock path for 14 layers in LLM.int8."""


@pytest.mark.parametrize(
    ("fast", "mode"),
    [(True, "none"), (True, "8bit"), (True, "4bit"), (False, "8bit"), (False, "4bit"), slow(False, "none")],
)
def test_losses_and_waits(card, mode, fast):
    results = card.run(train_on_both, {"mode": mode, "fast": fast})
    check_both(results)
    assert ("_varlen_attn" in results[0]["operations"]) == fast
    assert results[0]["replies"] == results[1]["replies"]
    for step in results[0]["steps"]:
        reads = sum(count for wait, count in step.items() if not wait.startswith("upload"))
        assert reads <= READS[fast] + (READS_OF_INT8 if mode == "8bit" and not fast else 0), step
        assert sum(step.values()) - reads <= UPLOADS[fast], step


NOTES = {
    "phi3": ["Decoder layers are not fused (Phi3DecoderLayer"],
    "gemma2": ["The model's own LM head is used", "Decoder layers are not fused (Gemma2DecoderLayer"],
}
"""Messages of the fast path for architectures whose layers are not fused on any device."""


@pytest.mark.parametrize("architecture", ["phi3", "gemma2", *map(slow, ("llama", "qwen2", "qwen3", "mistral"))])
def test_fast_path_of_architecture(card, architecture):
    results = card.run(train_on_both, {"base": f"random:{architecture}"})
    check_both(results, NOTES.get(architecture, []))


@pytest.mark.skipif("LORA_CHAT_ALL_CUDA" not in os.environ, reason="on demand: make cuda-test")
@pytest.mark.parametrize("recomputed", [False, 1, True])
@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize("mode", ["none", "8bit", "4bit"])
@pytest.mark.parametrize("architecture", ["llama", "qwen2", "qwen3", "mistral", "phi3", "gemma2"])
def test_every_architecture_mode_and_path(card, architecture, mode, fast, recomputed):
    settings = {"gradient_checkpointing": recomputed}
    asked = {"base": f"random:{architecture}", "mode": mode, "fast": fast, "settings": settings}
    on_card, on_cpu = card.run(train_on_both, asked)
    assert on_card["device"] == "cuda:0"
    assert not any("does not run" in note or "Out of memory" in note for note in on_card["notes"])
    # LLM.int8 rounds activations on the stock path of a card, and never in training on a CPU.
    rounds_activations = mode == "8bit" and not fast
    largest = LARGEST_DIFFERENCE_OF_INT8 if rounds_activations else LARGEST_DIFFERENCE
    assert on_card["losses"] == pytest.approx(on_cpu["losses"], abs=largest)


def test_stock_path_of_gemma2(card):
    check_both(card.run(train_on_both, {"base": "random:gemma2", "fast": False}))


@pytest.mark.skipif("LORA_CHAT_ALL_CUDA" not in os.environ, reason="on demand: make cuda-test")
@pytest.mark.parametrize("fast", [True, slow(False)])
def test_gradient_checkpointing_changes_nothing(card, fast):
    plain = card.run(train, {"fast": fast})
    for recomputed in (1, True):
        recomputing = card.run(train, {"fast": fast, "settings": {"gradient_checkpointing": recomputed}})
        assert recomputing["losses"] == pytest.approx(plain["losses"], abs=1e-4)
        assert recomputing["notes"] == []


def test_stock_path_for_heads_that_the_attention_kernel_refuses(card):
    """The packing check with a mask passes before, so the refusal of the kernel is the only reason."""
    results = card.run(train_on_both, {"mode": "none", "base": "random:llama:20"})
    check_both(results, notes=["(head_size must be a multiple of 8)"])


@pytest.mark.slow
def test_eight_bit_adam(card):
    check_both(card.run(train_on_both, {"settings": {"optimizer": "adamw_8bit"}, "adapter": {"rank": 32}}))


def test_smaller_micro_batches_after_out_of_memory(card):
    lengths = [200 + number for number in (0, 5, 11, 2, 8, 4, 13, 3, 6, 1, 10, 7)]
    asked = {"lengths": lengths, "settings": {"effective_batch_size": 8}}
    plain = card.run(train, asked)
    limited = card.run(train, {**asked, "free": 4_000_000})
    assert limited["device"] == "cuda:0"
    assert any("Out of memory" in note and "micro_batch_tokens becomes" in note for note in limited["notes"])
    assert limited["losses"] == pytest.approx(plain["losses"], abs=LARGEST_DIFFERENCE)


def train_without_dry_run(asked):
    import card_training

    from lora_chat.training.callbacks.memory_check import MemoryCheckCallback

    MemoryCheckCallback.on_train_begin = lambda *arguments, **options: None
    return card_training.train(asked)


def test_dry_run_leaves_the_random_state_of_the_card(card):
    asked = {"mode": "none", "fast": False, "adapter": {"dropout": 0.3}, "settings": {"max_steps": 2}}
    assert card.run(train_without_dry_run, asked)["weights"] == card.run(train, asked)["weights"]


def train_and_record_dry_run(asked):
    import card_training
    import fake_card

    from lora_chat.training.callbacks.memory_check import MemoryCheckCallback

    check, peaks = MemoryCheckCallback.on_train_begin, []

    def on_train_begin(*arguments, **options):
        fake_card.reset_counters()  # without the peaks of earlier checks
        check(*arguments, **options)
        peaks.append(fake_card.peak_bytes())
        fake_card.reset_counters()

    MemoryCheckCallback.on_train_begin = on_train_begin
    return {"dry_run": peaks, "training": card_training.train(asked)["peak"]}


@pytest.mark.parametrize("optimizer", ["adamw", "adamw_8bit"])
def test_dry_run_needs_the_memory_of_training(card, optimizer):
    batch_bytes = 50_000  # the token ids of all micro-batches of a step, which the dry run does not load
    asked = {
        "lengths": [300] * 12,
        "settings": {"optimizer": optimizer, "micro_batch_tokens": 300},
        "adapter": {"rank": 64},
    }
    seen = card.run(train_and_record_dry_run, asked)
    assert seen["training"] - batch_bytes <= seen["dry_run"][0] <= seen["training"] * 1.2, seen


@pytest.mark.skipif("LORA_CHAT_ALL_CUDA" not in os.environ, reason="on demand: make cuda-test")
@pytest.mark.parametrize(
    "settings",
    [
        pytest.param({"fast": True}, id="fast"),
        pytest.param({"fast": False}, id="stock", marks=pytest.mark.slow),
        pytest.param(
            {"settings": {"optimizer": "adamw_8bit"}, "adapter": {"rank": 32}}, id="adamw_8bit", marks=pytest.mark.slow
        ),
    ],
)
def test_resumed_training_gives_the_same_bytes(card, tmp_path, settings):
    asked = {**settings, "checkpoints": True}
    asked["settings"] = {"max_steps": 4, **asked.get("settings", {})}
    asked["adapter"] = {"dropout": 0.1, **asked.get("adapter", {})}
    complete = card.run(train, {**asked, "folder": str(tmp_path / "complete")})
    interrupted = card.run(train, {**asked, "folder": str(tmp_path / "resumed"), "stop_after": 2})
    assert interrupted["stopped"]
    resumed = card.run(train, {**asked, "folder": str(tmp_path / "resumed"), "resume": True})
    assert len(complete["metrics"]) == 4
    assert resumed["metrics"] == complete["metrics"]
    assert resumed["weights"] == complete["weights"] != interrupted["weights"]


def test_turing_card_uses_the_stock_path(card):
    results = card.run(train_on_both, {"mode": "none", "fast": True}, capability=(7, 5))
    assert "_varlen_attn" not in results[0]["operations"]
    assert results[0]["device"] == "cuda:0"
    assert results[0]["losses"] == pytest.approx(results[1]["losses"], abs=LARGEST_DIFFERENCE)


def train_with_older_attention(asked):
    import card_training
    import torch.nn.attention.varlen as module

    attention = module.varlen_attn
    if asked.pop("expands_heads_itself", False):  # PyTorch 2.10 and 2.11 pass fewer key heads to the kernel

        def older(query, key, value, *rest, scale=None, window_size=(-1, -1)):
            shared = query.shape[1] != key.shape[1]
            return attention(query, key, value, *rest, scale=scale, window_size=window_size, enable_gqa=shared)

    else:

        def older(*arguments, scale=None, window_size=(-1, -1)):
            return attention(*arguments, scale=scale, window_size=window_size)

    module.varlen_attn = older
    return card_training.train_on_both(asked)


@pytest.mark.parametrize("expands", [True, slow(False)])
def test_attention_without_enable_gqa(card, expands):
    check_both(card.run(train_with_older_attention, {"expands_heads_itself": expands}))


@pytest.mark.slow
@pytest.mark.parametrize(("mode", "fast"), [("4bit", True), ("none", True), ("4bit", False)])
def test_sharded_base_on_the_card(card, mode, fast):
    whole, sharded = (card.run(train, {"mode": mode, "fast": fast, "sharded": choice}) for choice in (False, True))
    assert sharded["device"] == "cuda:0"
    assert sharded["notes"] == whole["notes"]
    assert sharded["losses"] == whole["losses"]
    assert sharded["weights"] == whole["weights"]
    assert sharded["replies"] == whole["replies"]
