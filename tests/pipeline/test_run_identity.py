"""A checkpoint continues only as the same run; the error names a changed field with both values."""

import json
from types import SimpleNamespace

import pytest

from lora_chat.data.dataset import EncodedRows
from lora_chat.errors import IntegrityError, UsageError
from lora_chat.pipeline.run_identity import check_same_run, digest_rows

COMMITTED = {
    "data.rows": "a" * 64,
    "training.epochs": 3.0,
    "training.seed": 0,
    "adapter.rank": 16,
    "versions.torch": "2.13.0",
}


def test_accepts_an_unchanged_run():
    assert check_same_run(COMMITTED, dict(COMMITTED), (), "runs/a-1") == []


@pytest.mark.parametrize(
    ("field", "value", "shown"),
    [
        ("data.rows", "b" * 64, "it was aaaaaaaaaaaa..., now it is bbbbbbbbbbbb..."),
        ("training.seed", 1, "it was 0, now it is 1"),
        ("adapter.rank", 8, "it was 16, now it is 8"),
    ],
)
def test_rejects_a_change_with_both_values(field, value, shown):
    now = COMMITTED | {field: value}
    with pytest.raises(IntegrityError) as caught:
        check_same_run(COMMITTED, now, (), "runs/a-1")
    assert f"{field}: {shown}" in str(caught.value)
    assert "--accept-change" not in str(caught.value)
    with pytest.raises(UsageError, match="cannot be accepted"):
        check_same_run(COMMITTED, now, (field,), "runs/a-1")


def test_acceptable_change_names_the_flag_that_accepts_it():
    now = COMMITTED | {"training.epochs": 4.0, "versions.torch": "2.14.0"}
    with pytest.raises(IntegrityError, match=r"--accept-change training.epochs --accept-change versions.torch"):
        check_same_run(COMMITTED, now, (), "runs/a-1")
    accepted = check_same_run(COMMITTED, now, ("training.epochs", "versions.torch"), "runs/a-1")
    assert accepted == ["training.epochs: 3.0 -> 4.0", "versions.torch: 2.13.0 -> 2.14.0"]


def test_new_or_missing_field_is_a_change():
    without = {key: value for key, value in COMMITTED.items() if key != "training.seed"}
    for committed, now in ((COMMITTED, without), (without, COMMITTED)):
        with pytest.raises(IntegrityError, match=r"training\.seed"):
            check_same_run(committed, now, (), "runs/a-1")


class Rows:
    def __init__(self, ids, mask):
        from datasets import Dataset

        self.rows = EncodedRows(Dataset.from_dict({"input_ids": ids, "labels": mask}))


def test_row_digest_depends_on_ids_masks_borders_and_order():
    digests = [
        digest_rows(Rows(ids, mask))
        for ids, mask in [
            ([[1, 2], [3]], [[False, True], [True]]),
            ([[1, 2], [4]], [[False, True], [True]]),
            ([[1, 2], [3]], [[True, True], [True]]),
            ([[1], [2, 3]], [[False], [True, True]]),
            ([[3], [1, 2]], [[True], [False, True]]),
        ]
    ]
    assert len(set(digests)) == 5
    assert digest_rows(Rows([[1, 2], [3]], [[False, True], [True]])) == digests[0]


def test_the_device_is_no_part_of_the_identity(monkeypatch):
    from lora_chat.config.load import read_recipe
    from lora_chat.config.plan import Plan, make_plan
    from lora_chat.pipeline import run_identity
    from lora_chat.system.hardware import Hardware

    monkeypatch.setattr(run_identity, "digest_rows", lambda dialogues: "")
    identity = SimpleNamespace(
        weights="", tokenizer="", chat_template="", version=2, version_2_parts=dict, kept_tokens=(), thinking=None
    )
    prepared = SimpleNamespace(train=None, identity=identity)
    fields = []
    for device, index in (("auto", 0), ("cuda:1", 1)):
        recipe = read_recipe("recipes/smoke.yaml", [f"base.device={device}"])
        plan = make_plan(recipe, Hardware("cuda", device, 2**34, True, 4, index, (8, 6)))
        fields.append(run_identity.describe_run(plan, prepared, {}))
    assert fields[0] == fields[1]
    old = plan.model_dump(mode="json")
    del old["base"]["device"]
    assert Plan.model_validate_json(json.dumps(old)).base.device == "auto"
