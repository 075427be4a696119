"""The system message of the recipe: which dialogues get it, what is counted, and where it is refused."""

import json

import pytest

from lora_chat.config.data import DataSection
from lora_chat.config.load import read_recipe
from lora_chat.config.system_message import SystemSection
from lora_chat.data.parsing.rows import ReadingOptions, read_chunks, read_dialogues
from lora_chat.data.sources import find_sources
from lora_chat.errors import DataError, RecipeError

TURNS = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes"}]
ROWS = [
    {"messages": TURNS},
    {"messages": [{"role": "system", "content": "Mine."}, *TURNS]},
    {"messages": [{"role": "system", "content": "Ours."}, *TURNS]},
    {"messages": [{"role": "system", "content": " "}, *TURNS]},
    {"prompt": "Hi", "completion": "Yes"},
    {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Yes"}]},
]


def write_rows(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def read(path, **options):
    dialogues, counts = read_dialogues(path, options=ReadingOptions(**options))
    return [[m.content for m in dialogue.messages if m.role == "system"] for dialogue in dialogues], counts.notes


@pytest.mark.parametrize(
    ("replaces", "systems", "notes"),
    [
        (False, ["Ours.", "Mine.", "Ours.", "Ours."], {"system_added": 2, "system_own": 1}),
        (True, ["Ours."] * 4, {"system_added": 2, "system_replaced": 1}),
    ],
)
def test_dialogues_without_a_system_message_get_the_one_of_the_recipe(tmp_path, replaces, systems, notes):
    path = write_rows(tmp_path / "rows.jsonl", ROWS[:4])
    result, counts = read(path, system="Ours.", replaces_system=replaces)
    assert result == [[system] for system in systems]
    assert counts == notes


@pytest.mark.parametrize("row", ROWS[4:])
def test_every_format_of_dialogues_gets_it(tmp_path, row):
    path = write_rows(tmp_path / "rows.jsonl", [row])
    assert read(path, system="Ours.") == ([["Ours."]], {"system_added": 1})


def test_refuses_a_system_message_for_plain_text(tmp_path):
    path = write_rows(tmp_path / "rows.jsonl", [{"text": "A line."}])
    with pytest.raises(DataError, match="plain text, which has no system message"):
        list(read_chunks([path], ReadingOptions(system="Ours.")))


def write_recipe(folder, data):
    (folder / "rows.jsonl").write_text("", encoding="utf-8")
    path = folder / "recipe.yaml"
    path.write_text(f"data:\n{data}", encoding="utf-8")
    return path


def test_the_text_of_a_file_becomes_part_of_the_recipe(tmp_path):
    (tmp_path / "system.txt").write_text("Be kind.\nAlways.\n\n", encoding="utf-8-sig")
    sources = "  train: [{path: rows.jsonl, system: Mine.}, rows.jsonl]\n  system: {file: system.txt, replace: true}\n"
    data = read_recipe(write_recipe(tmp_path, sources)).data
    assert data.system == SystemSection(text="Be kind.\nAlways.", replace=True)
    options = [source.reading_options for source in find_sources(data.train_sources)]
    assert [(o.system, o.replaces_system) for o in options] == [("Mine.", False), ("Be kind.\nAlways.", True)]


@pytest.mark.parametrize(
    ("system", "message"),
    [
        ("{file: missing.txt}", "there is no file"),
        ("{file: .}", "there is no file"),
        ("{file: empty.txt}", "is empty"),
        ("{file: latin.txt}", "not UTF-8"),
        ("{file: empty.txt, text: x}", "either `text` or `file`"),
        ("{replace: true}", "either `text` or `file`"),
        ('" "', "is empty"),
    ],
)
def test_refuses_a_system_message_without_text(tmp_path, system, message):
    (tmp_path / "empty.txt").write_text("\n", encoding="utf-8")
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    with pytest.raises(RecipeError, match=message):
        read_recipe(write_recipe(tmp_path, f"  train: rows.jsonl\n  system: {system}\n"))


def test_validation_files_get_the_same_system_message():
    data = DataSection(train="a", validation="b", system="Ours.", limit=3)
    assert [(source.system, source.limit) for source in (*data.train_sources, *data.validation_sources)] == [
        ("Ours.", 3)
    ] * 2
