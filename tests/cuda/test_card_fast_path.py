"""The fast path on an emulated card: what it replaces by the stock path, and its check on a long dialogue."""

import pytest


def train_with_broken_attention(asked):
    import builtins

    import card_training
    import torch.nn.attention.varlen as module

    error = getattr(builtins, asked.pop("error"))

    def broken(query, key, value, *rest, scale=None, window_size=(-1, -1), enable_gqa=False):
        raise error("this version has another attention")

    module.varlen_attn = broken
    return card_training.train_on_both(asked)


@pytest.mark.parametrize(
    "error",
    [
        "TypeError",
        "NotImplementedError",
        *(pytest.param(e, marks=pytest.mark.slow) for e in ("AttributeError", "ImportError")),
    ],
)
def test_broken_attention_leads_to_the_stock_path(card, error):
    on_card, on_cpu = card.run(train_with_broken_attention, {"mode": "none", "error": error})
    (note,) = on_card["notes"]
    assert "The fast path does not run on this device (this version has another attention)" in note
    assert on_card["device"] == "cuda:0"
    assert on_card["losses"] == pytest.approx(on_cpu["losses"], abs=0.002)


def train_with_limited_check(asked):
    import card_training
    import torch

    from lora_chat.training.fast_path import check_gradients

    limit, lengths, compute_loss = asked.pop("limit"), [], check_gradients._fast_loss

    def limited(model, parts, rows):
        lengths.append(max(len(row["input_ids"]) for row in rows))
        if lengths[-1] > limit:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9.00 GiB.")
        return compute_loss(model, parts, rows)

    check_gradients._fast_loss = limited
    return card_training.train(asked) | {"lengths": lengths}


LONG = {"mode": "none", "lengths": [9, 14, 20, 300]}


def test_check_takes_the_longest_dialogue_and_less_of_it_if_memory_runs_out(card):
    result = card.run(train_with_limited_check, {**LONG, "limit": 200})
    assert result["lengths"] == [9, 300, 9, 150]
    assert result["notes"] == []


def test_run_goes_on_without_the_fast_path_if_no_check_fits(card):
    result = card.run(train_with_limited_check, {**LONG, "limit": 0})
    (note,) = result["notes"]
    assert "The fast path does not run on this device (CUDA out of memory" in note
    assert len(result["losses"]) == 4


def train_with_wrong_late_positions(asked):
    import card_training

    from lora_chat.training.fast_path.layers import attention_block

    rotate = attention_block.apply_rotary_in_place
    attention_block.apply_rotary_in_place = lambda states, cos, sin: rotate(states[:150], cos[:150], sin[:150])
    return card_training.train(asked)


def test_fault_at_late_positions_is_found_before_training(card):
    (note,) = card.run(train_with_wrong_late_positions, LONG)["notes"]
    assert "Fused layers are off, because their gradients differ from the model's (model.layers." in note
