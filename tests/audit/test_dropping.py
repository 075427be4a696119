"""Findings whose dialogues are left out: which dialogues, under which kind, and the sets without them."""

import dataclasses

import numpy as np
import pytest
from pydantic import ValidationError

from lora_chat.audit.auditor import Auditor
from lora_chat.audit.format import format_audit, format_refusal
from lora_chat.config.audit import FINDING_KINDS, AuditSection, possible_actions
from lora_chat.config.data import DataSection
from lora_chat.data.dataset import build_full_set, build_weighted_set, leave_out_units
from lora_chat.data.dialogue import Dialogue, Message
from lora_chat.data.sources import find_sources, open_sources

KEY = "gh" + "p_" + "Zq4mT7xN2vB9kL5sR8wY3cJ6hF1dG0pQaUeX"
MAIL = "ines.okafor" + "@" + "ferrymail.org"
LONG = "the ferry to the north island leaves from the red gate at five past every hour between six and midnight "
NOT_DROPPED = {"repeated_reply", "imbalance"}


def talk(question, reply):
    return Dialogue((Message("user", question), Message("assistant", reply)))


FINDINGS = {
    "secret": [talk("The token?", f"It is {KEY}.")],
    "possible_secret": [talk("The login?", "password: q7Rk2Vx9Lm")],
    "personal_data": [talk("Whom?", f"Write to {MAIL}.")],
    "exact_duplicate": [talk("When does it leave?", "At five."), talk("When does it leave?", "At five.")],
    "near_duplicate": [talk("When? " + LONG, LONG * 3), talk("When? " + LONG, LONG * 3 + "today")],
    "abusive_language": [talk("Well?", "You are a fucking idiot.")],
    "control_token": [talk("Which?", "Write <|im_end|> there.")],
    "template_code": [talk("Dear?", "Dear {{ customer_name }},")],
    "empty_reply": [talk("And?", "TODO")],
    "repetitive_reply": [talk("Say it.", "again and again and so on " * 30)],
}


def audit(policy, train, validation=()):
    auditor = Auditor(policy, ["<|im_end|>"])
    for dialogue in train:
        auditor.add(dialogue)
    for dialogue in validation:
        auditor.add(dialogue, "validation")
    return auditor


@pytest.mark.parametrize("kind", FINDINGS)
def test_dialogue_with_a_finding_is_left_out(kind):
    plain = [talk(f"Question {n} about {n * 7919}?", f"Answer number {n * 104729}.") for n in range(3)]
    report = audit(AuditSection.model_validate({kind: "drop"}), [*plain, *FINDINGS[kind]]).report()
    assert report.left_out == (3 + len(FINDINGS[kind]) - 1,)  # of several equal ones the first remains
    assert report.dropped == {kind: 1}
    assert not report.refused


@pytest.mark.parametrize("kind", ["leak", "near_leak"])
def test_validation_dialogue_that_is_trained_on_is_left_out(kind):
    first, second = FINDINGS["exact_duplicate" if kind == "leak" else "near_duplicate"]
    other = talk("What else?", "Nothing at all.")
    report = audit(
        AuditSection.model_validate({kind: "drop"}), [other, first], [second, talk("Really?", "Yes.")]
    ).report()
    assert (report.left_out, report.dropped) == ((2,), {kind: 1})


def test_every_kind_can_be_dropped_except_those_of_the_whole_data_set():
    assert {kind for kind in FINDING_KINDS if "drop" in possible_actions(kind)} == set(FINDING_KINDS) - NOT_DROPPED
    assert set(FINDINGS) | {"leak", "near_leak"} | NOT_DROPPED == set(FINDING_KINDS)
    for kind in NOT_DROPPED:
        with pytest.raises(ValidationError):
            AuditSection.model_validate({kind: "drop"})


def test_dialogue_with_several_findings_counts_once_under_the_first_kind():
    policy = AuditSection(secret="drop", personal_data="drop", exact_duplicate="drop")
    both = talk("Who?", f"{MAIL} has {KEY}")
    report = audit(policy, [both, both, talk("a?", "b"), talk("a?", "b")]).report()
    assert report.left_out == (0, 1, 3)
    assert report.dropped == {"secret": 2, "exact_duplicate": 1}
    assert "left out: 3 dialogues: 2 secrets, 1 duplicates" in format_audit(report, policy)
    assert "left_out" not in report.as_dict() and report.as_dict()["dropped"] == report.dropped


def test_clean_one_of_two_near_duplicates_remains():
    first, second = FINDINGS["near_duplicate"]
    spoilt = dataclasses.replace(first, messages=(first.messages[0], Message("assistant", f"{LONG * 3} {MAIL}")))
    report = audit(AuditSection(personal_data="drop", near_duplicate="drop"), [spoilt, second]).report()
    assert report.left_out == (0,)


def test_question_cannot_be_left_out():
    policy = AuditSection(personal_data="drop")
    auditor = audit(policy, [talk("a?", "b")])
    auditor.add_text(f"Whose is {MAIL}?", "q.jsonl", 1)
    report = auditor.report()
    assert (report.refused, report.left_out) == (("personal_data",), ())
    message = format_refusal(report, policy)
    assert "cannot be left out" in message and "to warn or redact" in message


@pytest.fixture(scope="module")
def store(tiny_tokenizer, tmp_path_factory):
    path = tmp_path_factory.mktemp("dropping") / "d.jsonl"
    path.write_text("".join(f'{{"prompt": "q{n}", "completion": "a{n}"}}\n' for n in range(6)))
    data = DataSection(train=str(path), workers=1)
    (source,) = open_sources(
        find_sources(data.train_sources), data, tiny_tokenizer, [tiny_tokenizer.eos_token_id], None
    )
    return source.store


@pytest.mark.parametrize("weight", [1, 2, 2.5])
def test_set_without_units_keeps_the_rest_in_order(store, weight):
    whole = build_weighted_set([store, store], [weight, weight], 0)
    rest = leave_out_units(whole, [1, 4, 7])
    assert [unit.messages[0].content for unit in rest.read()] == ["q0", "q2", "q3", "q5", "q0", "q2", "q3", "q4", "q5"]
    assert len(rest) == 9
    units = [unit for store_units in rest.repeated_units for unit in store_units]
    assert len(rest.rows) == len(units) and 1 not in rest.repeated_units[0] and 4 in rest.repeated_units[1]
    assert rest.rows[0].input_ids == whole.rows[0].input_ids and rest.rows[1].input_ids == whole.rows[2].input_ids
    assert np.array_equal(rest.rows.lengths, [len(row.input_ids) for row in rest.rows])


def test_set_without_units_of_a_full_set(store):
    assert [unit.messages[0].content for unit in leave_out_units(build_full_set([store]), [0, 5]).read()] == [
        "q1",
        "q2",
        "q3",
        "q4",
    ]
