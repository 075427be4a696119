from pathlib import Path

import pytest

from lora_chat.cli import main
from lora_chat.config.bundled_recipes import find_recipe, list_bundled_recipes
from lora_chat.config.load import read_recipe
from lora_chat.errors import RecipeError


def test_every_bundled_recipe_has_its_own_name_and_a_summary():
    recipes = list_bundled_recipes()
    names = [recipe.name for recipe in recipes]
    assert len(set(names)) == len(names) > 10
    for recipe in recipes:
        assert len(recipe.summary) > 20
        assert read_recipe(recipe.name) == read_recipe(recipe.path)


def test_a_file_comes_before_a_bundled_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert find_recipe("smoke").name == "smoke.yaml"
    Path("smoke").write_text("data: {train: x.jsonl}")
    assert find_recipe("smoke") == Path("smoke")


def test_a_name_of_two_recipes_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("smoke.yaml").write_text("data: {train: x.jsonl}")
    with pytest.raises(RecipeError, match=r"smoke is a recipe of lora_chat, and smoke\.yaml is here too\. Fix: name"):
        read_recipe("smoke")
    assert str(read_recipe("smoke.yaml").data.train).endswith("x.jsonl")


@pytest.mark.parametrize("name", ["smoke.yaml", "tasks/math", "./smoke", "..", ""])
def test_a_path_is_not_searched_among_the_bundled_recipes(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert find_recipe(name) == Path(name)


def test_an_unknown_name_is_answered_with_the_nearest(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RecipeError, match=r"mine is neither .* Did you mean mine\.yaml\?"):
        Path("mine.yaml").touch()
        find_recipe("mine")
    with pytest.raises(RecipeError, match=r"quickstar is neither .* Did you mean quickstart\?\nFix: lora-chat recipes"):
        find_recipe("quickstar")


def test_recipes_lists_and_copies(tmp_path, capsys):
    assert main(["recipes", "--copy", str(tmp_path / "mine")]) == 0
    assert capsys.readouterr().out.count("\n") == len(list_bundled_recipes())
    copied = read_recipe(tmp_path / "mine" / "quickstart.yaml")
    assert Path(copied.data.train).is_relative_to(tmp_path)
    assert main(["recipes", "--copy", str(tmp_path / "mine")]) == 2
    assert "Fix: name a new folder" in capsys.readouterr().err
