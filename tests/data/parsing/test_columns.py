"""Messages from several columns, by a list or a format text; no code runs, and an unknown column is refused."""

import json

import pytest
from pydantic import ValidationError

from lora_chat.config.columns import ColumnsSection, split_column_format
from lora_chat.data.dialogue import InvalidDialogueError
from lora_chat.data.parsing.columns import list_used_columns, read_column
from lora_chat.data.parsing.rows import ReadingOptions, parse_chunk, read_chunks, read_dialogues
from lora_chat.errors import DataError

ROW = {
    "language": "German",
    "text": "good day",
    "hint": None,
    "blank": " ",
    "a.b": "dot",
    "{odd}": "braces",
    "n": [1],
    "k": 3,
}


@pytest.mark.parametrize(
    ("columns", "text"),
    [
        ("text", "good day"),
        (("text", "hint", "blank", "language"), "good day\n\nGerman"),
        (("{odd}",), "braces"),
        ("Translate into {language}:\n{text}", "Translate into German:\ngood day"),
        ("{{literal}} {text}{hint}", "{literal} good day"),
        ("{text} {text}", "good day good day"),
        ("{a.b}", "dot"),
        ("{k} {text}", "3 good day"),
        ("Into {hint}{blank}", None),
        (("hint", "blank"), None),
    ],
)
def test_reads_the_text_of_columns(columns, text):
    assert read_column(ROW, columns) == text


@pytest.mark.parametrize("columns", ["{text} {n}", ("text", "n")])
def test_refuses_a_cell_that_is_not_text_among_several(columns):
    with pytest.raises(InvalidDialogueError, match="no text in the column 'n'"):
        read_column(ROW, columns)


@pytest.mark.parametrize(
    "columns",
    ["{", "{}", "a {b", "a} {b}", "{a{b}}", "{{no column}}", (), ("a", ""), ("a", "a"), tuple(map(str, range(101)))],
)
def test_refuses_a_faulty_format_in_the_recipe(columns):
    with pytest.raises(ValidationError):
        ColumnsSection(user=columns, assistant="answer")


def test_splits_a_format_into_literals_and_columns():
    assert split_column_format("{a}{{x}} {b}.") == (("", "a"), ("{x} ", "b"), (".", None))
    assert list_used_columns({"user": "{a} {b}", "assistant": "c", "system": ("d", "{e}")}) == {
        "a",
        "b",
        "c",
        "d",
        "{e}",
    }


def test_a_table_is_recognised_by_the_columns_of_a_format(tmp_path):
    path = tmp_path / "table"
    path.write_text("lang,src,target\nGerman,good day,guten Tag\nDutch,,goedendag\n", encoding="utf-8")
    columns = {"user": "Into {lang}: {src}", "assistant": "target", "system": ("lang",)}
    dialogues, _ = read_dialogues(path, options=ReadingOptions(columns=columns))
    assert [[m.content for m in dialogue.messages] for dialogue in dialogues] == [
        ["German", "Into German: good day", "guten Tag"],
        ["Dutch", "Into Dutch: ", "goedendag"],
    ]


@pytest.mark.parametrize(
    "user", ["{question.__class__}", "{question[0]}", "{question!r}", "{question:>9}", ("queston",)]
)
def test_refuses_an_unknown_column_with_the_names_of_the_others(tmp_path, user):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"question": "Why?", "answer": "So."}\n', encoding="utf-8")
    with pytest.raises(DataError, match=r"has no column '.*' \(its columns: 'question', 'answer'\)"):
        read_dialogues(path, options=ReadingOptions(columns={"user": user, "assistant": "answer"}))


def test_plain_text_may_come_from_several_columns(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"title": "Rain", "body": "It falls."}) + "\n", encoding="utf-8")
    options = ReadingOptions(columns={"text": "# {title}\n\n{body}"})
    (chunk,) = read_chunks([path], options)
    (document,), _ = parse_chunk(chunk, options)
    assert document.text == "# Rain\n\nIt falls."
