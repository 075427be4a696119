"""The recipe in a receipt names no folder, whether the path is absolute, relative, a glob or missing."""

import json

import pytest

from lora_chat.config.load import format_recipe_yaml
from lora_chat.config.recipe import Recipe
from lora_chat.runs.run_folder import RunFolder
from lora_chat.sharing.collect import collect_recipe, public_file_name

CLIENT = "client-ACMECORP"
PATHS = [
    f"/home/anna/{CLIENT}/d.jsonl",
    f"{CLIENT}/d.jsonl",
    f"./{CLIENT}/d.jsonl",
    f"../{CLIENT}/d.jsonl",
    f"~/{CLIENT}/d.jsonl",
    f"/srv/{CLIENT}",
    f"{CLIENT}",
    f"{CLIENT}/",
    f"/srv/{CLIENT}/*.jsonl",
    f"/srv/{CLIENT}*/d.jsonl",
    f"C:\\{CLIENT}\\d.jsonl",
    f"\\\\server\\{CLIENT}\\d.jsonl",
    f"{CLIENT}\\d.jsonl",
]


def recipe_with(tmp_path, **parts):
    recipe = Recipe.model_validate_json(json.dumps({"base": {"name": "tiny-random"}, "output": {"name": "k"}} | parts))
    run = RunFolder(tmp_path)
    run.recipe.write_text(format_recipe_yaml(recipe), encoding="utf-8")
    return collect_recipe(run, "tiny-random")


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("place", ["train", "validation", "list", "source", "paths", "template", "questions"])
def test_receipt_names_no_folder(tmp_path, path, place):
    data = {
        "train": {"train": path},
        "validation": {"train": "x.jsonl", "validation": path},
        "list": {"train": ["x.jsonl", path]},
        "source": {"train": {"path": path}},
        "paths": {"train": [{"path": [path, "x.jsonl"], "weight": 0.5}]},
        "template": {"train": "x.jsonl", "template": path},
        "questions": {"train": "x.jsonl"},
    }[place]
    evaluation = {"questions": path} if place == "questions" else {}
    recipe = json.dumps(recipe_with(tmp_path, data=data, evaluation=evaluation))
    assert "ACME" not in recipe
    assert "anna" not in recipe
    assert "d.jsonl" in recipe or "*.jsonl" in recipe or "folder" in recipe


def test_hides_the_name_of_a_folder_with_a_dot(tmp_path):
    (tmp_path / "client.v2").mkdir()
    (tmp_path / "plain").write_text("")
    assert public_file_name(str(tmp_path / "client.v2")) == "folder"
    assert public_file_name(str(tmp_path / "plain")) == "plain"


def test_keeps_names_of_hub_data_sets_and_bundled_templates(tmp_path):
    data = {"train": [{"hub": "HuggingFaceH4/ultrachat_200k", "split": "train_sft"}], "template": "chatml"}
    recipe = recipe_with(tmp_path, data=data)["data"]
    assert recipe["train"][0]["hub"] == "HuggingFaceH4/ultrachat_200k"
    assert recipe["template"] == "chatml"


def test_receipt_does_not_name_the_device_of_the_machine(tmp_path):
    recipe = recipe_with(tmp_path, base={"name": "tiny-random", "device": "cuda:1"}, data={"train": "x.jsonl"})
    assert recipe["base"] == {"name": "tiny-random", "revision": None}
