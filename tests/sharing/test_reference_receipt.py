"""Outputs of the adapted model in a receipt: bounded, consistent, and only in version 5."""

import copy
import hashlib
import json
from random import Random

import pytest
from forging import facts, facts_of_version_4, facts_of_version_5, forge, make_members, raw_of, reference
from pydantic import ValidationError

from lora_chat.errors import IntegrityError
from lora_chat.export.parity.reference import REFERENCE_QUESTIONS, ModelReference
from lora_chat.models.adapter_config import LoraSettings
from lora_chat.sharing.compatibility import report_portability
from lora_chat.sharing.container import RECEIPT
from lora_chat.sharing.model_card import format_parcel_card
from lora_chat.sharing.parcel import open_parcel
from lora_chat.sharing.receipt import Receipt


def receipt(fields):
    return Receipt.model_validate_json(json.dumps(fields))


def changed_reply(**changed):
    fields = facts_of_version_5(reference=reference())
    fields["reference"]["replies"][0] |= changed
    return fields


def test_a_parcel_of_version_5_opens_and_its_card_names_the_reference(tmp_path):
    path = tmp_path / "kiln-1.lorachat"
    members = make_members(**facts_of_version_5())
    path.write_bytes(raw_of(members))
    assert open_parcel(path).receipt.reference.positions == 4
    assert b"4 positions of 2 replies to built-in questions (4bit, bfloat16, on cpu)" in members["README.md"]


def test_a_reference_belongs_to_version_5():
    for version, value in ((4, reference()), (5, None)):
        with pytest.raises(ValidationError, match="reference in version 5"):
            receipt(facts_of_version_4(version=version, reference=value))
    assert "reference" not in receipt(facts_of_version_4()).model_dump(mode="json")
    assert receipt(facts(version=5, reference=reference())).evaluation is None


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"question": len(REFERENCE_QUESTIONS)}, "question"),
        ({"question": 2}, "repeated or not sorted"),
        ({"question": 3}, "repeated or not sorted"),
        ({"prompt": "EF" * 32}, "prompt"),
        ({"reply": [], "top": []}, "reply"),
        ({"reply": [7]}, "1 tokens, but 2 distributions"),
        ({"reply": [7, 8]}, "not among the most probable"),
        ({"reply": [-1, 7]}, "reply"),
        ({"reply": [7, 2**24]}, "reply"),
        ({"reply": [7] * 65, "top": ["7:-0.100000"] * 65}, "reply"),
        ({"reply": [7, True]}, "reply"),
        ({"top": ["7:-0.100000", "7:nan"]}, "top"),
        ({"top": ["7:-0.100000", "7:-inf"]}, "top"),
        ({"top": ["7:-0.100000", "7:-1e999999"]}, "top"),
        ({"top": ["7:-0.100000", "99999999:-0.200000"]}, "impossible token"),
        ({"top": ["7:-0.100000", "9:-3.000000 7:-0.100000"]}, "not sorted"),
        ({"top": ["7:-0.100000", "9:0.100000"]}, "positive"),
        ({"top": ["7:-0.100000", "9:-0.100000 9:-3.000000"]}, "repeated"),
        ({"top": ["7:-0.100000", "9:-0.100000 7:-0.100000"]}, "more than 1"),
        ({"top": ["7:-0.100000", " ".join(f"{i}:-9.000000" for i in range(33))]}, "top"),
        ({"extra": 1}, "extra"),
    ],
)
def test_refuses_replies_that_no_model_gives(changes, match):
    with pytest.raises(ValidationError, match=match):
        receipt(changed_reply(**changes))


@pytest.mark.parametrize(
    "changes", [{"mode": "2bit"}, {"dtype": "int8"}, {"device": "cpu; rm"}, {"replies": []}, {"more": 0}]
)
def test_refuses_other_references(changes):
    with pytest.raises(ValidationError):
        receipt(facts_of_version_5(reference=reference(**changes)))


def test_refuses_a_reference_that_was_changed_without_the_digest(tmp_path):
    members = make_members(**facts_of_version_5())
    path = tmp_path / "kiln-1.lorachat"
    changed = members[RECEIPT].replace(b"7:-0.100000", b"7:-0.100001")
    assert changed != members[RECEIPT]
    path.write_bytes(raw_of({**members, RECEIPT: changed}))
    with pytest.raises(IntegrityError, match="another digest"):
        open_parcel(path)


def test_refuses_a_forged_receipt_with_an_impossible_reference(tmp_path):
    path = tmp_path / "kiln-1.lorachat"

    def change(fields):
        fields["reference"]["replies"][0]["top"][0] = "7:-0.100000 9:-0.100000"

    path.write_bytes(raw_of(forge(make_members(**facts_of_version_5()), change)))
    with pytest.raises(IntegrityError, match="sum to more than 1"):
        open_parcel(path)


def test_the_card_of_version_5_never_changes():
    """See `test_the_card_of_version_1_never_changes`: give the receipt another version instead."""
    made = receipt(copy.deepcopy(facts_of_version_5()))
    portability = report_portability(LoraSettings.from_section(made.adapter), "4bit", "llama")
    card = format_parcel_card(made, portability).replace("lora_chat 0.1.0", "")
    assert hashlib.sha256(card.encode()).hexdigest()[:16] == "ecd684615df2e6de"


def test_any_changed_reference_is_refused_or_consistent():
    random = Random(1)
    odd = [
        None,
        True,
        -1,
        0,
        2**70,
        1.5,
        "",
        "7:-0.100000",
        "x" * 5000,
        [],
        {},
        ["7:-0.100000"] * 2,
        "9" * 9,
        float("1e308"),
    ]
    accepted = 0
    for _ in range(500):
        changed = copy.deepcopy(reference())
        target = random.choice([changed, *changed["replies"]])
        key = random.choice(list(target))
        if isinstance(target[key], list) and target[key] and random.random() < 0.6:
            target[key][random.randrange(len(target[key]))] = random.choice(odd)
        elif isinstance(target[key], str) and random.random() < 0.6:
            cut = random.randrange(len(target[key]) + 1)
            target[key] = target[key][:cut] + chr(random.choice([0, 32, 45, 48, 58, 233, 0x202E])) + target[key][cut:]
        else:
            target[key] = random.choice(odd)
        try:
            made = ModelReference.model_validate_json(json.dumps(changed))
        except ValidationError:
            continue
        accepted += 1
        assert made.positions == sum(len(reply.distributions) for reply in made.replies) > 0
        assert 0 <= made.largest_id < 2**24
    assert accepted < 250
