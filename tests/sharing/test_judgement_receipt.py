"""Human votes in a receipt are computed again from their counts, and belong to the adapter of the parcel."""

import copy
import hashlib
import json

import pytest
from forging import facts, facts_of_version_4, forge, make_members, make_weights, raw_of
from judgement_records import BASE, make_comparison, make_equal, make_vote
from pydantic import ValidationError
from safetensors.torch import save

from lora_chat.errors import IntegrityError
from lora_chat.evaluation.judgement_text import format_result
from lora_chat.evaluation.judgements import summarize_judgements
from lora_chat.pipeline.held_out import EvaluationFiles
from lora_chat.pipeline.open_adapter import TrustOptions
from lora_chat.pipeline.verify_parcel import verify_parcel
from lora_chat.runs.judgement_log import append_judgement
from lora_chat.runs.run_folder import RunFolder
from lora_chat.sharing.collect import collect_judgement
from lora_chat.sharing.judgement_receipt import JudgementReceipt, make_judgement_receipt
from lora_chat.sharing.parcel import open_parcel
from lora_chat.sharing.receipt import Receipt

WEIGHTS = hashlib.sha256(save(make_weights(), metadata={"format": "pt"})).hexdigest()


def summarize(wins=15, losses=5, ties=2, other=None, note=""):
    comparison = make_comparison(WEIGHTS, other)
    choices = ["left"] * wins + ["right"] * losses + ["tie"] * ties
    votes = [make_vote(i, choice, comparison=comparison, note=note) for i, choice in enumerate(choices)]
    return summarize_judgements(votes)[0]


def fields_of(result, name="kiln-1"):
    return json.loads(make_judgement_receipt(result, name).model_dump_json())


def test_a_parcel_with_votes_says_them_on_its_card(tmp_path, cache_home):
    result = summarize(note="PRIVATE <script>")
    path = tmp_path / "kiln-1.lorachat"
    path.write_bytes(raw_of(make_members(**facts_of_version_4(version=5, judgement=fields_of(result)))))
    parcel = open_parcel(path)
    assert parcel.receipt.judgement.word == "better"
    assert "PRIVATE" not in path.read_bytes().decode("latin-1")
    text = "Better by human judgement: kiln-1 was preferred to base in 15 of 20 decided pairs"
    assert text in parcel.receipt.judgement.text
    assert text in path.read_bytes().decode("latin-1").replace("\\", "")  # members are not compressed
    verification = verify_parcel(str(path), EvaluationFiles(), TrustOptions(), repeat_measurements=False)
    assert "judgement" in verification.as_dict()["sender_states"]


@pytest.mark.parametrize(
    "counts", [(0, 0, 3), (1, 0, 0), (6, 0, 0), (0, 9, 0), (15, 5, 2), (3, 4, 40), (50_000, 49_000, 1000)]
)
def test_every_result_that_a_run_can_have_is_accepted(counts):
    result = summarize(*(min(count, 300) for count in counts))
    made = make_judgement_receipt(result, "kiln-1")
    assert JudgementReceipt.model_validate_json(made.model_dump_json()) == made
    assert made.text.replace("kiln-1", "run-" + WEIGHTS[0]) == format_result(result)


def test_a_run_without_votes_has_none():
    assert make_judgement_receipt(summarize_judgements([make_equal(1)])[0], "kiln-1") is None


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"word": "worse"}, "'better' follows from the votes"),
        ({"word": "no difference shown"}, "'better' follows"),
        ({"wins": 14}, "verdict|follow|fit together"),
        ({"losses": 4, "votes": 21}, "win_rate does not follow"),
        ({"win_rate": 0.9}, "win_rate does not follow"),
        ({"win_rate": None}, "win_rate does not follow"),
        ({"win_rate_interval": [0.7, 0.8]}, "win_rate_interval does not follow"),
        ({"half_rate": 0.5}, "half_rate does not follow"),
        ({"half_rate_interval": [0.5, 1.0]}, "half_rate_interval does not follow"),
        ({"p_value": 0.001}, "p_value does not follow"),
        ({"needed_votes": 7}, "needed_votes does not follow"),
        ({"votes": 21}, "do not fit together"),
        ({"votes": 500}, "do not fit together"),
        ({"judges": 30}, "do not fit together"),
        ({"ties": 10**6}, "ties"),
        ({"p_value": "0.04"}, "p_value"),
        ({"notes": ["x"]}, "notes"),
        ({"a": {"label": "base", "adapter": None}}, "does not compare an adapter"),
        ({"b": {"label": "x", "adapter": WEIGHTS}}, "does not compare an adapter"),
        ({"b": {"label": "[x](http://evil)", "adapter": None}}, "label"),
        ({"a": {"label": "kiln-1", "adapter": "1" * 64}}, "votes are on another adapter"),
    ],
)
def test_votes_that_contradict_themselves_are_refused(changes, match):
    fields = facts_of_version_4(version=5, judgement={**fields_of(summarize()), **changes})
    fields["members"] = {"adapter_model.safetensors": {"size": 1, "sha256": WEIGHTS}}
    with pytest.raises(ValidationError, match=match):
        Receipt.model_validate_json(json.dumps(fields))


def test_a_forged_win_rate_is_refused_with_the_right_digests(tmp_path):
    members = make_members(**facts_of_version_4(version=5, judgement=fields_of(summarize())))

    def change(receipt):
        receipt["judgement"]["win_rate"] = 0.95

    path = tmp_path / "forged.lorachat"
    path.write_bytes(raw_of(forge(members, change)))
    with pytest.raises(IntegrityError, match="win_rate does not follow from the votes"):
        open_parcel(path)


def test_votes_need_version_5():
    for fields in (facts(), facts_of_version_4()):
        with pytest.raises(ValidationError, match="human votes or a reference in version 5"):
            Receipt.model_validate_json(json.dumps(fields | {"judgement": fields_of(summarize())}))


def test_receipts_without_votes_are_written_as_before():
    members = make_members(**facts_of_version_4())
    receipt = json.loads(members["receipt.json"])
    assert "judgement" not in receipt
    assert "judgement" not in json.loads(make_members(**facts())["receipt.json"])


@pytest.mark.parametrize(
    ("name", "label"),
    [
        ("/home/me/runs/secret-client-3/", "secret-client-3"),
        ("C:\\runs\\x 1", "x-1"),
        ("<b>", "b"),
        ("你好", "adapter"),
    ],
)
def test_the_name_of_another_adapter_becomes_a_plain_label(name, label):
    result = summarize(other="2" * 64)
    changed = copy.copy(result)
    other = result.comparison.b.model_copy(update={"name": name})
    object.__setattr__(changed, "comparison", result.comparison.model_copy(update={"b": other}))
    assert make_judgement_receipt(changed, "kiln-1").b.label == label


def test_a_run_gives_the_votes_on_its_weights_against_the_base(tmp_path):
    run = RunFolder(tmp_path)
    assert collect_judgement(run, "kiln-1") is None
    run.adapter.mkdir()
    (run.adapter / "adapter_model.safetensors").write_bytes(save(make_weights(), metadata={"format": "pt"}))
    (run.adapter / "lora_chat.json").write_text(json.dumps({"weights": BASE}))
    for number in range(9):
        append_judgement(run.judgements, make_vote(number, comparison=make_comparison(WEIGHTS, "2" * 64)))
    for comparison in (
        make_comparison(None, WEIGHTS),
        make_comparison("3" * 64),
        make_comparison(WEIGHTS, base="c" * 64),
    ):
        append_judgement(run.judgements, make_vote(20, "right", comparison=comparison, note="secret"))
    made = collect_judgement(run, "kiln 1")
    assert (made.a.label, made.a.adapter, made.b.adapter, made.wins, made.votes) == ("kiln-1", WEIGHTS, None, 1, 1)
    assert "secret" not in made.model_dump_json()
