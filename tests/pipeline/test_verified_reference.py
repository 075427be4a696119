"""`verify` compares the prompts of a reference without weights, and with --again the loaded adapter."""

import pytest

from lora_chat.pipeline.held_out import EvaluationFiles
from lora_chat.pipeline.open_adapter import open_adapter
from lora_chat.pipeline.verify_parcel import _check_reference, format_verification, verify_parcel
from tests.pipeline.serving_fixtures import things  # noqa: F401


@pytest.fixture(scope="module")
def good(things):  # noqa: F811
    return things.parcel("good", things.adapter("good-adapter"))


def verify(path, things):  # noqa: F811
    return verify_parcel(str(path), EvaluationFiles(), things.trust, repeat_measurements=False)


def test_again_confirms_the_reference_of_the_loaded_adapter(things, good):  # noqa: F811
    (check,) = _check_reference(open_adapter(str(good), things.trust))
    assert (check.passed, check.confirms) == (True, ("reference",))
    assert "the bare base" in check.found


def test_again_refuses_the_reference_of_another_adapter(things):  # noqa: F811
    other = things.parcel("other", things.adapter("other-adapter", seed=6))
    forged = things.parcel("forged", things.adapter("good-adapter"), reference=things.measure(other))
    (check,) = _check_reference(open_adapter(str(forged), things.trust))
    assert check.passed is False


def test_a_parcel_without_a_reference_has_no_such_check(things):  # noqa: F811
    old = things.parcel("old", things.adapter("good-adapter"), reference=None)
    assert list(_check_reference(open_adapter(str(old), things.trust))) == []
    assert "reference" not in verify(old, things).as_dict()["receipt"]


def test_verify_names_the_reference_and_refuses_other_prompts(things, good):  # noqa: F811
    verification = verify(good, things)
    assert verification.passed
    assert "reference" in format_verification(verification).split("Stated by the sender only")[1]
    reference = things.measure(good)
    reference["replies"][1]["prompt"] = "0" * 64
    forged = verify(things.parcel("unasked", things.adapter("good-adapter"), reference=reference), things)
    assert not forged.passed
    assert any("other token ids here than in training" in check.found for check in forged.checks)
