"""Strangers' YAML that expands beyond its size is refused before it is built."""

import time

import pytest
import yaml

from lora_chat.config.load import read_recipe
from lora_chat.errors import RecipeError
from lora_chat.system.strict_yaml import (
    MAX_CARD_CHARACTERS,
    MAX_DEPTH,
    MAX_RECIPE_CHARACTERS,
    compose_strict,
    read_front_matter,
)

LAUGHS = "a0: &a0 [ha, ha]\n" + "".join(f"a{n + 1}: &a{n + 1} [{', '.join([f'*a{n}'] * 9)}]\n" for n in range(9))
MERGED = "x: &x {a: 1}\ny: {<<: *x}\n"
BAD = {
    "a billion laughs": (LAUGHS, "aliases"),
    "a merged mapping": (MERGED, "aliases"),
    "an anchor alone": ("x: &x 1\n", "aliases"),
    "an anchored key": ("&x y: 1\n", "aliases"),
    "an alias to itself": ("x: &x [*x]\n", "aliases"),
    "lists nested deeply": ("x: " + "[" * 100_000, "nested too deeply"),
    "lists nested a little too deeply": ("x: " + "[" * MAX_DEPTH + "]" * MAX_DEPTH, "nested too deeply"),
    "mappings nested deeply": ("x: " + "{a: " * 50_000, "nested too deeply"),
    "blocks nested deeply": ("\n".join(" " * n + "a:" for n in range(900)), "nested too deeply"),
    "dashes nested deeply": ("x:\n " + "- " * 50_000, "nested too deeply"),
    "a tag of Python": ("x: !!python/object/apply:os.system ['true']\n", ""),
    "a tag of its own": ("x: !evil 1\n", ""),
    "a key twice": ("x: 1\nx: 2\n", "twice"),
    "a list as a key": ("? [1]\n: 2\n", "plain"),
    "no YAML": ("x: [1\n", ""),
    "a control character": ("x: \x01\n", ""),
}


@pytest.mark.parametrize("kind", BAD)
def test_card_and_recipe_refuse_invalid_yaml_quickly(kind, tmp_path):
    text, match = BAD[kind]
    begun = time.process_time()
    with pytest.raises(ValueError, match=match):
        read_front_matter(f"---\n{text}\n---\n# Words\n")
    (tmp_path / "r.yaml").write_text(text)
    with pytest.raises(RecipeError, match=match) as caught:
        read_recipe(tmp_path / "r.yaml")
    assert str(caught.value).count("\n") == 0 and len(str(caught.value)) < 400 + len(str(tmp_path))
    assert time.process_time() - begun < 5


@pytest.mark.parametrize("value", ["2020-99-99", "9" * 5000, "!!binary 'x'", "!!int x"], ids=lambda value: value[:9])
def test_refuses_unreadable_value(value):
    with pytest.raises(ValueError):
        read_front_matter(f"---\nx: {value}\n---\n")


def test_refuses_second_document(tmp_path):
    (tmp_path / "r.yaml").write_text("data: a\n---\ndata: b\n")
    with pytest.raises(RecipeError, match="second document"):
        read_recipe(tmp_path / "r.yaml")


def test_refuses_too_long_text_without_parsing(tmp_path):
    with pytest.raises(ValueError, match="are allowed"):
        read_front_matter("---\n" + "# x\n" * (MAX_CARD_CHARACTERS // 4 + 1) + "---\n")
    with pytest.raises(yaml.YAMLError, match="are allowed"):
        compose_strict("#" * (MAX_RECIPE_CHARACTERS + 1))
    (tmp_path / "r.yaml").write_text("#" * (MAX_RECIPE_CHARACTERS + 1))
    with pytest.raises(RecipeError, match="at most"):
        read_recipe(tmp_path / "r.yaml")


def test_refuses_device_as_recipe():
    with pytest.raises(RecipeError, match="at most"):
        read_recipe("/dev/zero")


GOOD = {
    "---\na: 1\nb: [x, {c: d}]\n---\n# Words\n": {"a": 1, "b": ["x", {"c": "d"}]},
    "\n---\r\na: yes\r\n---\r\ntext": {"a": True},
    "---\nlicense: mit\n---": {"license": "mit"},
    "---\n---\n": {},
    "# Words\n---\na: 1\n---\n": {},
    "": {},
    "---\na: 1\n": {},
    "---\ntext: |\n  a\n  b\n---\n": {"text": "a\nb\n"},
}


@pytest.mark.parametrize("text", GOOD, ids=ascii)
def test_reads_honest_card(text):
    assert read_front_matter(text) == GOOD[text]


def test_refuses_card_that_is_not_a_mapping():
    with pytest.raises(ValueError, match="not a mapping"):
        read_front_matter("---\n- a\n---\n")
