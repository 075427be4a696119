"""The top of a card: huggingface_hub reads it, it states what is known, and no name of a stranger becomes a setting."""

import json

import pytest
import yaml
from forging import facts, facts_of_version_5, facts_of_version_6, hub_metadata, make_members
from huggingface_hub import ModelCard, metadata_eval_result
from huggingface_hub.repocard_data import eval_results_to_model_index, model_index_to_eval_results
from pydantic import ValidationError
from test_card import NASTY, SETTINGS, card_of

from lora_chat.commands.parser import make_parser
from lora_chat.sharing.compatibility import report_portability
from lora_chat.sharing.hub_metadata import HubReceipt, describe_for_hub, format_hub_metadata
from lora_chat.sharing.model_card import format_parcel_card
from lora_chat.sharing.parcel import open_parcel
from lora_chat.sharing.receipt import Receipt

SMOLLM2 = "smollm2-135m-instruct"


def receipt(fields):
    return Receipt.model_validate_json(json.dumps(fields))


def parcel_card(fields):
    return format_parcel_card(receipt(fields), report_portability(SETTINGS, "4bit", "llama"))


def results_of(card):
    return {(r.dataset_name, r.metric_name): r for r in ModelCard(card).data.eval_results}


def test_huggingface_hub_reads_the_card_of_a_parcel():
    card = ModelCard(parcel_card(facts_of_version_6(license="CC-BY-4.0")))
    data = card.data
    assert (data.base_model, data.base_model_relation) == ("friend/tiny", "adapter")
    assert (data.library_name, data.pipeline_tag, data.license) == ("peft", "text-generation", "cc-by-4.0")
    assert (data.datasets, data.language, data.tags) == (["friend/kilns"], ["en", "de"], ["lora", "lora_chat"])
    assert data.model_name == "kiln-1"
    results = results_of(str(card))
    loss = results["friend/kilns, validation set", "validation loss (adapted)"]
    assert (loss.dataset_type, loss.metric_type, loss.metric_value) == ("friend/kilns", "loss", 1.25)
    assert results["friend/kilns, validation set", "validation loss (base)"].metric_value == 3.5
    questions = results["questions", "right of 4 questions (adapted)"]
    assert (questions.dataset_type, questions.metric_type, questions.metric_value) == ("unknown", "accuracy", 0.75)
    assert not any(result.verified or result.verify_token for result in results.values())
    assert "verified" not in str(card).split("---")[1]


def test_its_results_are_the_model_index_that_huggingface_hub_writes():
    index = yaml.safe_load(parcel_card(facts_of_version_6()).split("---\n")[1])["model-index"]
    name, results = model_index_to_eval_results(index)
    assert eval_results_to_model_index(name, results) == index
    task = {"task_pretty_name": "Text Generation", "task_id": "text-generation"}
    data_set = {"dataset_pretty_name": "friend/kilns, validation set", "dataset_id": "friend/kilns"}
    metric = {"metrics_pretty_name": "validation loss (adapted)", "metrics_id": "loss", "metrics_value": 1.25}
    expected = metadata_eval_result(model_pretty_name=name, **task, **data_set, **metric)["model-index"]
    first = index[0]["results"][0]
    assert expected == [{"name": name, "results": [first | {"metrics": [first["metrics"][0] | {"verified": False}]}]}]


def test_older_receipts_have_the_card_that_they_had():
    data = ModelCard(parcel_card(facts_of_version_5())).data
    assert data.eval_results is None
    assert data.to_dict().keys() == {"base_model", "base_model_relation", "library_name", "pipeline_tag", "tags"}


def test_a_parcel_of_version_6_opens_and_metadata_belongs_to_it(write):
    parcel = open_parcel(write(make_members(**facts_of_version_6())))
    assert parcel.receipt.hub == HubReceipt.model_validate_json(json.dumps(hub_metadata()))
    plain = facts(version=6, hub=hub_metadata())
    assert open_parcel(write(make_members(**plain), "plain.lorachat")).receipt.evaluation is None
    assert "validation loss (adapted)" in parcel_card(plain)
    for fields in (facts_of_version_5(hub=hub_metadata()), facts_of_version_6(hub=None)):
        with pytest.raises(ValidationError, match="in version 6, and only there"):
            receipt(fields)
    assert b'"hub"' not in make_members(**facts_of_version_5())["receipt.json"]


def test_the_embedded_base_has_its_name_on_the_hub_and_a_note():
    hub = describe_for_hub(SMOLLM2, {"train": "dialogues.jsonl"})
    assert hub == HubReceipt(base_model="HuggingFaceTB/SmolLM2-135M-Instruct", quantization="Q4_1")
    fields = facts_of_version_6(hub=hub.model_dump(mode="json"))
    fields["base"] = fields["base"] | {"base": SMOLLM2, "revision": None}
    for card in (parcel_card(fields), card_of(SMOLLM2)):
        data = ModelCard(card).data
        assert (data.base_model, data.base_model_relation) == ("HuggingFaceTB/SmolLM2-135M-Instruct", "adapter")
        assert "from a GGUF of type `Q4_1`, so its weights are not the ones on the hub" in card
    assert "GGUF of type" not in card_of("friend/tiny")


@pytest.mark.parametrize(
    ("base", "data", "expected"),
    [
        ("friend/tiny", {"train": "x.jsonl"}, {"base_model": "friend/tiny"}),
        ("tiny-random", {"train": ["x.jsonl", {"path": "y"}]}, {}),
        ("/home/anna/friend/tiny", {"train": None}, {}),
        ("x", {"train": {"hub": "o/d", "split": "train"}}, {"datasets": ("o/d",), "held_out": "o/d"}),
        ("x", {"train": [{"hub": "o/d"}, {"hub": "o/d", "subset": "b"}]}, {"datasets": ("o/d",), "held_out": "o/d"}),
        ("x", {"train": [{"hub": "o/d"}, "x.jsonl"]}, {"datasets": ("o/d",)}),
        ("x", {"train": [{"hub": "o/d"}, {"hub": "squad"}]}, {"datasets": ("o/d", "squad")}),
        ("x", {"train": {"hub": "o/d"}, "validation": {"hub": "o/d"}}, {"datasets": ("o/d",)}),
        ("x", {"train": {"hub": '[email address]"'}}, {}),
        ("x", [], {}),
    ],
)
def test_names_only_what_the_recipe_says(base, data, expected):
    assert describe_for_hub(base, data) == HubReceipt(**expected)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"base_model": "friend/other"}, "another base"),
        ({"base_model": None}, "another base"),
        ({"base_model": None, "quantization": "Q4_1"}, "without its name"),
        ({"datasets": ["friend/kilns", "friend/kilns"]}, "twice"),
        ({"held_out": "friend/other"}, "another data set"),
        ({"languages": ["English"]}, "languages"),
        ({"verified": True}, "verified"),
    ],
)
def test_refuses_metadata_that_contradicts_itself(changes, match):
    with pytest.raises(ValidationError, match=match):
        receipt(facts_of_version_6(hub=hub_metadata(**changes)))


@pytest.mark.parametrize("text", [*NASTY, "a\nb: c", 'a"b', "a\n"])
def test_no_hostile_text_becomes_metadata(text):
    for name in ("base_model", "quantization", "held_out"):
        with pytest.raises(ValidationError):
            HubReceipt.model_validate_json(json.dumps(hub_metadata(**{name: text})))
    for name in ("datasets", "languages"):
        with pytest.raises(ValidationError):
            HubReceipt.model_validate_json(json.dumps(hub_metadata(**{name: [text]})))
    assert describe_for_hub(text, {"train": {"hub": text}}) == HubReceipt()
    figures = {"validation_loss": {"base": 2.0, "adapted": 1.0}}
    (front,) = yaml.safe_load("\n".join(format_hub_metadata(HubReceipt(), None, text, figures)[1:-1]))["model-index"]
    assert front["name"] == "adapter"


def test_numbers_stay_numbers_and_diverged_models_have_no_results():
    figures = {"validation_loss": {"base": 1e-7, "adapted": 12345.678}, "perplexity": {"base": 2.0, "adapted": 1e300}}
    front = yaml.safe_load("\n".join(format_hub_metadata(HubReceipt(), None, "k", figures)[1:-1]))
    metrics = front["model-index"][0]["results"][0]["metrics"]
    assert [metric["value"] for metric in metrics] == [12345.678, 0.0]
    for value in (float("nan"), float("inf"), -float("inf")):
        bad = {"validation_loss": {"base": 1.0, "adapted": value}}
        assert "model-index:" not in format_hub_metadata(HubReceipt(), None, "k", bad)


def test_pack_takes_codes_of_languages_only(capsys):
    parser = make_parser()
    assert parser.parse_args(["pack", "run", "--language", "de", "--language", "nds"]).language == ["de", "nds"]
    for text in ("German", "de-AT", "d", "DE", 'e"', "en\n"):
        with pytest.raises(SystemExit):
            parser.parse_args(["pack", "run", "--language", text])
    assert "is not a code of two or three small letters" in capsys.readouterr().err
