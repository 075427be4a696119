"""The distance of a model from the record of its training is a lower bound that tells the adapter from the base."""

import math

import pytest
import torch

from lora_chat.config.plan import PrecisionPlan
from lora_chat.errors import IntegrityError
from lora_chat.export.parity.reference import ModelReference, digest_prompt, format_top, parse_top
from lora_chat.export.parity.reference_outputs import (
    ReferenceComparison,
    ReferenceDistance,
    compare_with_reference,
    find_reference_limit,
    measure_reference,
    truncated_kl,
)

FP32 = PrecisionPlan(device="cpu", mode="none", double_quantization=False, dtype="float32")


def top_of(logits, count):
    values, ids = logits.double().log_softmax(-1).topk(count)
    return tuple(zip(ids.tolist(), values.tolist(), strict=True))


def make_reference(logits, count=3, **changed):
    """Return the reference of a model that gives each of these logits once."""
    top = [top_of(row, count) for row in logits]
    reply = {
        "question": 1,
        "prompt": digest_prompt([5, 6]),
        "reply": tuple(ids[0][0] for ids in top),
        "top": tuple(map(format_top, top)),
    }
    return ModelReference.model_validate(
        {"mode": "none", "dtype": "float32", "device": "cpu", "replies": (reply,)} | changed
    )


def test_kl_of_the_stored_tokens_is_a_lower_bound_that_grows_with_their_number():
    generator = torch.Generator().manual_seed(1)
    for scale in (0.1, 1.0, 8.0):
        p, q = (torch.randn(50, generator=generator, dtype=torch.float64) * scale for _ in range(2))
        true = float((p.softmax(-1) * (p.log_softmax(-1) - q.log_softmax(-1))).sum())
        bounds = [truncated_kl(top_of(p, count), q) for count in (1, 4, 16, 49, 50)]
        assert all(0 <= bound <= true + 1e-12 for bound in bounds)
        assert bounds == sorted(bounds)
        assert bounds[-2:] == pytest.approx([true, true])
        assert truncated_kl(top_of(p, 8), p) == pytest.approx(0, abs=1e-12)


def test_rounding_of_the_stored_text_is_far_below_every_limit():
    logits = torch.randn(200, 40, generator=torch.Generator().manual_seed(2)) * 5
    stored = [parse_top(format_top(top_of(row, 8))) for row in logits]
    assert max(truncated_kl(top, row) for top, row in zip(stored, logits, strict=True)) < 1e-5


def test_extreme_probabilities_give_finite_or_refused_distances():
    certain = torch.tensor([1000.0, 0.0, 0.0, 0.0])
    assert truncated_kl(parse_top(format_top(top_of(certain, 2))), certain) == 0
    assert truncated_kl(top_of(certain, 2), -certain) > 900
    nan = truncated_kl(top_of(certain, 2), torch.full((4,), math.nan))
    assert math.isnan(nan)
    assert ReferenceComparison(ReferenceDistance(1, nan, nan, 0.0), 5.0, 1e-2, "float32").passed is False


@pytest.mark.parametrize(
    ("kl", "control", "dtype", "passed"),
    [
        (1e-4, 3.0, "float32", True),
        (2e-2, 3.0, "float32", False),
        (5e-3, 6e-3, "bfloat16", False),  # the base is as near
        (3e-4, 4e-4, "bfloat16", None),  # the adapter changes hardly anything
        (3e-4, 4e-4, "float32", False),
        (0.0, 0.0, "float32", None),
    ],
)
def test_judges_the_distance_beside_the_bare_base(kl, control, dtype, passed):
    comparison = ReferenceComparison(ReferenceDistance(48, kl, kl, 1.0), control, 1e-2, dtype)
    assert comparison.passed is passed
    assert ("bare base is as near" in comparison.describe()) == (passed is False and kl < 1e-2)


def test_another_quantization_proves_nothing_against_an_adapter():
    far, near = (ReferenceDistance(48, kl, kl, 1.0) for kl in (2.5, 0.1))
    assert ReferenceComparison(far, 3.0, 0.3, "bfloat16", is_other_mode=True).passed is None
    assert ReferenceComparison(near, 3.0, 0.3, "bfloat16", is_other_mode=True).passed is True
    assert "another one than in training" in ReferenceComparison(far, 3.0, 0.3, "bfloat16", True).describe()
    nan = ReferenceDistance(48, math.nan, math.nan, 1.0)
    assert ReferenceComparison(nan, 3.0, 0.3, "bfloat16", is_other_mode=True).passed is False


def test_compares_adapter_and_base_with_the_reference():
    generator = torch.Generator().manual_seed(3)
    adapted, base = (torch.randn(4, 30, generator=generator) * 3 for _ in range(2))
    reference = make_reference(adapted, count=8)
    seen = []

    def scorer(logits):
        def score(ids, positions):
            seen.append((list(ids), list(positions)))
            return logits

        return score

    comparison = compare_with_reference(reference, {1: [5, 6]}, FP32, scorer(adapted), scorer(base))
    assert comparison.passed is True
    assert comparison.distance.mean_kl < 1e-5 < 1 < comparison.control_kl
    assert seen[0] == ([5, 6, *reference.replies[0].reply], [1, 2, 3, 4])
    swapped = compare_with_reference(reference, {1: [5, 6]}, FP32, scorer(base), scorer(adapted))
    assert swapped.passed is False


def test_refuses_a_token_outside_of_the_vocabulary():
    reference = make_reference(torch.randn(2, 30, generator=torch.Generator().manual_seed(4)))
    with pytest.raises(IntegrityError, match="which the base does not have"):
        measure_reference(reference, {1: [0]}, lambda ids, positions: torch.zeros(2, 3))


@pytest.mark.parametrize(
    ("change", "limit"),
    [({}, 1e-2), ({"dtype": "bfloat16"}, 3e-2), ({"device": "cuda"}, 3e-2), ({"mode": "4bit"}, 0.3)],
)
def test_another_precision_has_a_wider_limit(change, limit):
    assert find_reference_limit(make_reference(torch.randn(2, 9), **change), FP32) == limit
