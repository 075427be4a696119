"""The lineage in a receipt: forged, cyclic and contradicting ones are refused, and old receipts have none."""

import json

import pytest
from forging import facts, make_members
from pydantic import ValidationError

from lora_chat.sharing.lineage import MAX_GENERATIONS, digest_settings
from lora_chat.sharing.receipt import Receipt

BASE = "ab" * 32
WEIGHTS = "adapter_model.safetensors"


def parent(number, how="start", **changed):
    entry = {"how": how, "name": f"parent-{number}", "adapter": f"{number:064x}", "config": "cd" * 32, "base": "tiny"}
    return entry | {"weights": BASE, "files": BASE, "tokenizer": BASE, "chat_template": BASE} | changed


def receipt(*lineage, version=3, **changed):
    fields = json.loads(json.dumps(facts())) | {"version": version, "lineage": list(lineage) or None} | changed
    return Receipt.model_validate_json(json.dumps(fields))


def test_lineage_of_several_generations_is_accepted():
    before = {"weights": "ef" * 32, "files": "ef" * 32}
    chain = receipt(parent(1), parent(2, "merge_first", **before), parent(3, **before))
    assert [entry.how for entry in chain.lineage] == ["start", "merge_first", "start"]
    assert json.loads(chain.model_dump_json())["lineage"][1]["weights"] == "ef" * 32


@pytest.mark.parametrize(
    ("lineage", "message"),
    [
        ([parent(1), parent(2), parent(1)], "cycle"),
        ([parent(1, weights="ef" * 32)], "another base"),
        ([parent(1, chat_template="ef" * 32)], "another base"),
        ([parent(1, files="ef" * 32)], "another base"),
        ([parent(1, "merge_first")], "the base is unchanged"),
        ([parent(1), parent(2, tokenizer="ef" * 32)], "another base"),
        ([parent(1, adapter="AB" * 32)], "adapter"),
        ([parent(1, name="../x")], "name"),
        ([parent(1, base="/home/client")], "base"),
        ([parent(1, extra=1)], "extra"),
        ([parent(number) for number in range(MAX_GENERATIONS + 1)], "at most"),
    ],
)
def test_forged_lineages_are_refused(lineage, message):
    with pytest.raises(ValidationError, match=message):
        receipt(*lineage)


def test_adapter_cannot_be_its_own_ancestor():
    members = {WEIGHTS: {"size": 1, "sha256": f"{7:064x}"}}
    assert receipt(parent(1), members=members)
    with pytest.raises(ValidationError, match="cycle"):
        receipt(parent(7), members=members)


def test_version_and_lineage_belong_together():
    for version, lineage in ((3, []), (2, [parent(1)])):
        with pytest.raises(ValidationError, match="lineage in version 3"):
            receipt(*lineage, version=version)
    losses = {"child_data": {"dialogues": 1, "validation_loss": {"base": 1.0, "parent": 1.0, "child": 1.0}}}
    with pytest.raises(ValidationError, match="names none"):
        receipt(version=2, generations=losses)
    with pytest.raises(ValidationError, match="not one of its settings"):
        receipt(version=2, adapter=facts()["adapter"] | {"start": "runs/x-1"})


def test_receipts_without_parents_have_the_fields_of_version_2():
    fields = json.loads(make_members()["receipt.json"])
    assert not fields.keys() & {"lineage", "generations"}
    assert not fields["adapter"].keys() & {"start", "stack"}


def test_digest_of_settings_ignores_defaults_and_places():
    recipe = {"quantization": {"mode": "none"}, "adapter": {"rank": 8}, "training": {"learning_rate": 0.01}}
    full = {
        "quantization": recipe["quantization"] | {"dtype": "auto"},
        "adapter": {"rank": 8, "alpha": 32.0, "start": "parent.lorachat", "stack": None},
        "training": {"learning_rate": 0.01, "epochs": 3.0, "memory": "10GiB"},
    }
    assert digest_settings(full) == digest_settings(recipe)
    assert digest_settings(full | {"adapter": {"rank": 4}}) != digest_settings(recipe)
    assert digest_settings({}) is None
