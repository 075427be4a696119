"""The verdict of a receipt follows from its figures, and its words are made again from them."""

import copy
import hashlib
import json

import pytest
from forging import facts, facts_of_version_4, make_members, raw_of
from pydantic import ValidationError

from lora_chat.evaluation.metrics import METRICS
from lora_chat.models.adapter_config import LoraSettings
from lora_chat.sharing.compatibility import report_portability
from lora_chat.sharing.evaluation_receipt import RECEIPT_METRICS
from lora_chat.sharing.model_card import format_parcel_card
from lora_chat.sharing.parcel import open_parcel
from lora_chat.sharing.receipt import Receipt


def receipt(*changes, fields=None):
    fields = copy.deepcopy(fields or facts_of_version_4())
    for path, value in changes:
        parent = fields["evaluation"]
        for key in path[:-1]:
            parent = parent[key]
        parent[path[-1]] = value
    return Receipt.model_validate_json(json.dumps(fields))


def card_of(made):
    portability = report_portability(LoraSettings.from_section(made.adapter), "4bit", "llama")
    return format_parcel_card(made, portability)


def test_the_metrics_of_version_4_exist():
    assert set(RECEIPT_METRICS) <= {metric.name for metric in METRICS}


def test_the_card_says_the_words_of_the_comparison():
    made = receipt()
    verdict = made.evaluation.make_verdict()
    assert verdict.word == "better"
    assert verdict.text == (
        "Better at the task: exact match 10.0% -> 75.0% (+65.0 points, 95 % interval +55.0 to +75.0, 40 replies); "
        "25 points worse in general (10 to 38, 40 of 147 items). The validation set was used twice, to choose the "
        "checkpoint and for these figures, so they may look better than on new dialogues (data.test or "
        "data.test_share gives a set that is used once). 2 of 40 dialogues were trained on (2 nearly). 1 other "
        "dialogues have questions of training with other replies."
    )
    card = card_of(made).replace("\\", "")
    assert verdict.text in card
    assert "recites 12 of 60 training replies word for word" in card
    assert "secrets or personal data of its training: 1 email address" in card
    assert "The adapter is that of step 2; training went on to step 3." in card


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ([(("verdict", "word"), "worse")], "'better' follows"),
        ([(("verdict", "metric"), "bleu")], "without figures"),
        ([(("verdict", "metric"), None), (("verdict", "word"), "better")], "'not measured' follows"),
        ([(("verdict", "metric"), "facts")], "'no difference shown' follows"),
        ([(("figures", "exact_match", "verdict"), "worse")], "contradicts its figures"),
        ([(("figures", "exact_match", "p_value"), 0.5)], "does not follow from the p-value"),
        ([(("figures", "exact_match", "constant_p_value"), 0.5)], "'no difference shown' follows"),
        ([(("figures", "exact_match", "base_interval"), [0.9, 0.1])], "ends before it begins"),
        ([(("figures", "beauty"), facts_of_version_4()["evaluation"]["figures"]["facts"])], "not a metric"),
        ([(("figures", "perplexity", "adapted"), 1.0)], "perplexity"),
        ([(("figures", "validation_loss", "adapted"), 0.5)], "perplexity|different figures"),
        ([(("overlap", "exact"), 20)], "were trained on"),
        ([(("overlap", "exact"), 50)], "more dialogues"),
        ([(("general", "adapted_right"), 41)], "more right replies than items"),
        ([(("general", "difference"), -2.0)], "not that of the right replies"),
        ([(("general", "word"), "better")], "contradicts the right replies"),
        ([(("recital", "only_adapted"), 1)], "contradict one another"),
        ([(("kept_step", "step"), 4)], "comes after the last"),
        ([(("dialogues",), -1)], "dialogues"),
        ([(("set",), "training")], "set"),
    ],
)
def test_figures_that_contradict_the_verdict_are_refused(changes, match):
    with pytest.raises(ValidationError, match=match):
        receipt(*changes)


def test_a_control_takes_back_a_verdict_by_the_loss():
    by_loss = [(("verdict", "metric"), "validation_loss")]
    assert receipt(*by_loss).evaluation.verdict.word == "better"
    unclear = [*by_loss, (("control", "p_value"), 0.5)]
    with pytest.raises(ValidationError, match="'no difference shown' follows"):
        receipt(*unclear)
    assert "do prompts and replies belong together" in card_of(
        receipt(*unclear, (("verdict", "word"), "no difference shown"))
    )


def test_verdicts_belong_to_version_4():
    fields = facts_of_version_4()
    with pytest.raises(ValidationError, match="verdict in version 4"):
        receipt(fields=fields | {"version": 2})
    with pytest.raises(ValidationError, match="verdict in version 4"):
        receipt(fields=fields | {"evaluation": None})
    assert "evaluation" not in receipt(fields=facts()).model_dump(mode="json")


def test_a_test_set_may_be_larger_than_the_validation_set():
    fields = facts_of_version_4()
    fields["comparison"]["validation_dialogues"] = 90
    with pytest.raises(ValidationError, match="compared on 90"):
        receipt(fields=fields)
    assert receipt((("set",), "test"), (("dialogues",), 90), fields=fields).evaluation.set == "test"


def test_a_parcel_of_version_4_opens(tmp_path):
    path = tmp_path / "kiln-1.lorachat"
    path.write_bytes(raw_of(make_members(**facts_of_version_4())))
    parcel = open_parcel(path)
    assert parcel.receipt.evaluation.make_verdict().word == "better"


def test_the_card_of_version_4_never_changes():
    """See `test_the_card_of_version_1_never_changes`: give the receipt another version instead."""
    cards = [card_of(receipt()), card_of(receipt((("overlap",), None), (("general",), None), (("recital",), None)))]
    digest = hashlib.sha256("".join(cards).replace("lora_chat 0.1.0", "").encode()).hexdigest()[:16]
    assert digest == "bb37b0de3f85f4cb"
