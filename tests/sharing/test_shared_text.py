"""A parcel obeys the audit section of its run: what is refused, what is redacted, and what needs consent."""

import json

import pytest
from forging import facts

from lora_chat.config.audit import AuditSection
from lora_chat.errors import DataError
from lora_chat.sharing import shared_text
from lora_chat.sharing.model_card import format_parcel_card
from lora_chat.sharing.receipt import Receipt

KEY = "gh" + "p_" + "Zq4mT7xN2vB9kL5sR8wY3cJ6hF1dG0pQaUeX"
MAIL = "ines.okafor" + "@" + "ferrymail.org"


def make_receipt(system="Be kind.", template=None, train="dialogues.jsonl", **audit):
    fields = facts(chat_template=template, recipe={"data": {"train": [{"path": train, "weight": 1.0}]}})
    fields["base"] = {**fields["base"], "system": system}
    source = {**fields["data"]["sources"][0], "name": train}
    fields["data"] = {**fields["data"], "sources": [source], "audit": audit}
    return Receipt.model_validate_json(json.dumps(fields))


def check_shared_text(receipt, policy, *, accept_findings):
    fields = receipt.model_dump(mode="json")
    return shared_text.check_shared_text(fields, receipt.data.audit, policy, accept_findings=accept_findings)


def redact_receipt(receipt, policy):
    recipe, data = shared_text.redact_shared_text(receipt.recipe, receipt.data, policy)
    return receipt.model_copy(update={"recipe": recipe, "data": data})


PLACES = {
    "base.system": lambda text: make_receipt(system=f"Write to {text}."),
    "chat_template": lambda text: make_receipt(template=f"{{# {text} #}}"),
    "recipe.data.train.path": lambda text: make_receipt(train=f"{text}/d.jsonl"),
}


def test_receipt_without_findings_is_shared_silently():
    receipt = make_receipt(personal_data=0, exact_duplicate=7)
    assert redact_receipt(receipt, AuditSection()) == receipt
    assert check_shared_text(receipt, AuditSection(), accept_findings=False) == []


@pytest.mark.parametrize("action", ["refuse", "redact", "drop"])
@pytest.mark.parametrize(("kind", "text"), [("secret", KEY), ("personal_data", MAIL)])
@pytest.mark.parametrize("place", ["base.system", "chat_template"])
def test_finding_that_the_policy_excludes_is_refused(place, kind, text, action):
    policy = AuditSection.model_validate({kind: action})
    with pytest.raises(DataError, match="does not allow") as raised:
        check_shared_text(redact_receipt(PLACES[place](text), policy), policy, accept_findings=True)
    assert place in str(raised.value) and "train again" in str(raised.value)
    assert text not in str(raised.value)


@pytest.mark.parametrize("place", PLACES)
def test_secret_needs_consent(place):
    receipt, policy = PLACES[place](KEY), AuditSection(secret="warn")
    with pytest.raises(DataError, match="--accept-findings") as raised:
        check_shared_text(receipt, policy, accept_findings=False)
    assert place in str(raised.value) and KEY not in str(raised.value)
    lines = check_shared_text(receipt, policy, accept_findings=True)
    assert lines and KEY not in "".join(lines)


@pytest.mark.parametrize("place", PLACES)
def test_personal_data_is_said(place):
    assert place in check_shared_text(PLACES[place](MAIL), AuditSection(), accept_findings=False)[0]
    assert check_shared_text(PLACES[place](MAIL), AuditSection(personal_data="ignore"), accept_findings=False) == []


def test_recipe_and_names_of_sources_are_redacted():
    policy = AuditSection(personal_data="redact")
    receipt = redact_receipt(PLACES["recipe.data.train.path"](MAIL), policy)
    assert receipt.recipe == {"data": {"train": [{"path": "[E-MAIL]/d.jsonl", "weight": 1.0}]}}
    assert receipt.data.sources[0].name == "[E-MAIL]/d.jsonl"
    assert check_shared_text(receipt, policy, accept_findings=False) == []


@pytest.mark.parametrize(("action", "refused"), [("warn", True), ("redact", False), ("drop", False)])
def test_adapter_that_was_trained_on_secrets_needs_consent(action, refused):
    receipt, policy = make_receipt(secret=2, personal_data=1), AuditSection(secret=action)
    if refused:
        with pytest.raises(DataError, match="2 secrets, 1 personal data"):
            check_shared_text(receipt, policy, accept_findings=False)
    lines = check_shared_text(receipt, policy, accept_findings=refused)
    assert len(lines) == 1 and "can be made to recite" in lines[0]


def test_card_does_not_depend_on_the_order_of_the_findings():
    cards = {
        format_parcel_card(make_receipt(**dict(counts)), [])
        for counts in ((("secret", 2), ("exact_duplicate", 1)), (("exact_duplicate", 1), ("secret", 2)))
    }
    assert len(cards) == 1
