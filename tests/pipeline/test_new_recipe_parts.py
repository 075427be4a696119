"""The decisions of `lora-chat new`: columns, languages, tasks, limits, default base and the text of the recipe."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lora_chat.commands.new import TASK_NAMES
from lora_chat.config.data import DataSection
from lora_chat.config.load import parse_recipe
from lora_chat.data.row_lengths import RowLengths
from lora_chat.errors import DataError, UsageError
from lora_chat.pipeline.new.base_candidates import BaseCandidate, choose_default
from lora_chat.pipeline.new.base_proposals import BASE_PROPOSALS
from lora_chat.pipeline.new.column_roles import find_column_roles
from lora_chat.pipeline.new.data_settings import (
    write_evaluation,
    write_held_out,
    write_lengths,
    write_source,
    write_wording,
)
from lora_chat.pipeline.new.find_source import find_source
from lora_chat.pipeline.new.languages import find_language, measure_languages
from lora_chat.pipeline.new.profile import read_profile
from lora_chat.pipeline.new.recipe_name import choose_recipe_path
from lora_chat.pipeline.new.recipe_text import RecipeDraft, format_recipe
from lora_chat.pipeline.new.sibling_files import find_held_out_files
from lora_chat.pipeline.new.task_kinds import TASKS, detect_task, find_contradiction
from lora_chat.pipeline.new.token_lengths import TokenLengths
from lora_chat.pipeline.new.training_settings import write_learning_rate, write_training

LONG = (
    "Nora and Ben talk about the garden. Ben cannot come on Saturday, so Nora asks for Sunday and Ben will help her. "
)


def dialogue(*turns):
    roles = ("user", "assistant")
    return {"messages": [{"role": roles[i % 2], "content": turn} for i, turn in enumerate(turns)]}


PAIRS = {
    "classification": lambda i: (f"please help me with thing {i}", ("refund", "card", "fee")[i % 3]),
    "math": lambda i: (f"How much is {i} and 1?", f"It is {i} + 1 = {i + 1}.\n#### {i + 1}"),
    "json": lambda i: (f"Read order {i}", json.dumps({"order": i, "size": "large"})),
    "reading": lambda i: (f"The mill of Orsted is run by miller Arvid{i} and his dog. Who runs it?", f"Arvid{i}"),
    "translation": lambda i: (f"This is the house of my friend number {i}.", f"这是我朋友的第{i}座房子。"),
    "summary": lambda i: (LONG * 3 + str(i), f"Ben will help Nora in the garden on Sunday {i}, and not on Saturday."),
    "questions": lambda i: (f"What is the name of cat {i}?", f"Misty the {i}th"),
    "chat": lambda i: (f"Hello {i}", f"Hi, how are you {i}?", "Fine", f"Good to hear that {i}."),
    "service": lambda i: (f"Two bikes {i}", "For which day?", "Today", "Booked, thank you."),
    "instructions": lambda i: (f"Describe hill {i}", f"Hill {i} is a long and green hill by the sea, with sheep."),
}
ROWS = {task: [dialogue(*turns(i)) for i in range(12)] for task, turns in PAIRS.items()}
ROWS["pretraining"] = [{"text": f"The beacon number {i} shows a green light."} for i in range(9)]
TOOL = {"type": "function", "function": {"name": "clock", "arguments": {}}}
ROWS["tools"] = [
    {"messages": [{"role": "user", "content": "time?"}, {"role": "assistant", "content": None, "tool_calls": [TOOL]}]}
]


def profile_of(tmp_path, rows, name="rows.jsonl"):
    path = tmp_path / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    source = find_source(DataSection(train=str(path)))
    return read_profile(source), source


@pytest.mark.parametrize("task", sorted(ROWS))
def test_recognises_each_task_by_its_rows(tmp_path, task):
    assert detect_task(profile_of(tmp_path, ROWS[task])[0])[0] == task


def test_the_command_offers_the_tasks_of_the_table():
    assert tuple(TASKS) == TASK_NAMES


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("What is the price of a bike for the whole day?", "English"),
        ("Wie viel kostet es und was ist nicht dabei?", "German"),
        ("Quel est le prix pour une journée et pour la nuit ?", "French"),
        ("今天天气怎么样？", "Chinese"),
        ("今日はいい天気ですね。", "Japanese"),
        ("Сколько это стоит?", "Cyrillic"),
        ("12 + 13 = 25", None),
        ('{"order": 1, "sizes": [1, 2]}', None),
    ],
)
def test_finds_the_language_of_a_text(text, language):
    assert find_language(text) == language


def test_rare_texts_in_unknown_languages_are_not_a_language():
    shares = measure_languages(
        ["This is the shop of my friend and it is open"] * 3 + ["Xilu Mergo Tapu Vende Sila Poru Kanto Gela"]
    )
    assert [share.language for share in shares] == ["English"]


@pytest.mark.parametrize(
    ("row", "columns", "task", "is_guess"),
    [
        ({"id": 1, "text": "a", "label": "b"}, ("text", "label"), "classification", False),
        ({"Article": "a", "Highlights": "b"}, ("Article", "Highlights"), "summary", False),
        ({"context": "a", "question": "b", "answers": ["c"]}, (("context", "question"), "answers"), "reading", False),
        ({"english": "a", "chinese": "b"}, ("english", "chinese"), "translation", True),
        ({"de": "a", "en": "b"}, ("de", "en"), "translation", True),
        ({"question": "a", "answer": 3}, ("question", "answer"), None, False),
        ({"left": "Hello there", "right": "Good day"}, ("left", "right"), None, True),
    ],
)
def test_finds_columns_and_says_whether_they_are_a_guess(row, columns, task, is_guess):
    roles = find_column_roles([row] * 3)
    assert ((roles.user, roles.assistant), roles.task, roles.is_guess) == (columns, task, is_guess)


def test_guesses_labels_and_languages_by_contents():
    labels = [{"words": f"a long enough sentence {i}", "kind": "ab"[i % 2]} for i in range(12)]
    assert find_column_roles(labels).as_columns == {"user": "words", "assistant": "kind"}
    languages = [{"x": "This is the house of my friend", "y": "这是我朋友的房子"}] * 9
    assert find_column_roles(languages).task == "translation"
    assert find_column_roles([{"id": 1, "content": "some text"}] * 3).as_columns == {"text": "content"}
    assert find_column_roles([{"a": "1", "b": "2", "c": "3"}] * 3) is None


def test_a_text_with_a_class_is_not_read_as_plain_text(tmp_path):
    profile, source = profile_of(tmp_path, [{"text": f"row {i}", "label": "ab"[i % 2]} for i in range(9)])
    assert (profile.data_format, source.roles.assistant) == ("columns", "label")


def test_a_text_file_is_plain_text_and_broken_json_is_not(tmp_path):
    (tmp_path / "book.txt").write_text("Once upon a time.\n\nThe end, as they say.\n")
    source = find_source(DataSection(train=str(tmp_path / "book.txt")))
    assert (source.section.format, read_profile(source).rows) == ("text", 1)
    (tmp_path / "rows.jsonl").write_text("Once upon a time.\n")
    with pytest.raises(DataError):
        read_profile(find_source(DataSection(train=str(tmp_path / "rows.jsonl"))))


def test_finds_held_out_files_beside_the_data(tmp_path):
    for name in ("train.jsonl", "test.jsonl", "mine.csv", "mine-dev.csv", "other.csv"):
        (tmp_path / name).touch()
    assert find_held_out_files(str(tmp_path / "train.jsonl")) == {"test": str(tmp_path / "test.jsonl")}
    assert find_held_out_files(str(tmp_path / "mine.csv")) == {"validation": str(tmp_path / "mine-dev.csv")}
    assert find_held_out_files(str(tmp_path / "other.csv")) == {}


TEXTS = st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=12)


@settings(max_examples=30, deadline=None)
@given(user=TEXTS, assistant=TEXTS, comment=TEXTS, system=TEXTS)
def test_any_names_and_comments_give_a_recipe_that_reads_back(user, assistant, comment, system):
    draft = RecipeDraft(comment, [comment])
    draft.set("data", "train", "my data.jsonl", comment)
    columns = {"user": (user,), "assistant": (assistant,), "system": (system,)}
    draft.set("data", "columns", columns, comment)
    draft.set("training", "learning_rate", 2e-4, comment)
    recipe = parse_recipe(format_recipe(draft), Path("new.yaml"))
    assert recipe.data.columns.model_dump(exclude_none=True) == columns
    assert (recipe.data.train, recipe.training.learning_rate) == (str(Path("my data.jsonl").absolute()), 2e-4)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.lists(st.tuples(TEXTS, TEXTS), min_size=1, max_size=12), task=st.sampled_from([None, *TASKS]))
def test_any_accepted_rows_give_a_recipe_that_reads_back(tmp_path, rows, task):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"text": user, "label": answer}) + "\n" for user, answer in rows))
    source = find_source(DataSection(train=str(path)))
    try:
        profile = read_profile(source)
    except DataError:
        return
    name = task or detect_task(profile, source.roles.task)[0]
    tokens = np.full(profile.rows, 20)
    lengths = TokenLengths(RowLengths(tokens, tokens, tokens), 0, profile.rows, 5, is_estimated=True, positions=None)
    draft = RecipeDraft("summary")
    write_source(draft, source.section, source.roles, found_format=True)
    write_wording(draft, name, source.roles, profile)
    write_held_out(draft, profile, lengths.count, lengths.num_distinct, {})
    write_training(draft, TASKS[name], profile, lengths.count)
    write_evaluation(draft, TASKS[name], profile, lengths)
    write_lengths(draft, TASKS[name], profile, lengths, lengths.list_limits()[0])
    write_learning_rate(draft, TASKS[name], 10**9)
    recipe = parse_recipe(format_recipe(draft), Path("new.yaml"))
    columns = recipe.data.columns.model_dump(exclude_none=True)
    assert columns["assistant"] == "label"
    assert "text" in str(columns["user"])


@pytest.mark.parametrize("name", ["../mine", "a/b", ".hidden", "nul", "", "-x", "a b", "x" * 200, "a\nb"])
def test_refuses_names_that_are_not_plain_file_names(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError):
        choose_recipe_path(name, "data")


def test_numbers_a_derived_name_and_refuses_an_existing_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("my-data.yaml").touch()
    assert choose_recipe_path(None, "my data!").name == "my-data-2.yaml"
    with pytest.raises(UsageError, match="exists"):
        choose_recipe_path("my-data.yaml", "data")


class Plan:
    def __init__(self, verdict, seconds):
        self.verdict, self.total_time = verdict, None if seconds is None else type("Time", (), {"likely": seconds})
        self.target = type("Target", (), {"device": "cuda"})


def candidate(name, verdict="fits", seconds=60.0, missing=(), above=0):
    limit = type("Limit", (), {"num_above": above, "tokens": 64})
    return BaseCandidate(name, 1, "none", limit, Plan(verdict, seconds), missing)


def test_the_default_is_the_largest_base_without_a_reason_against_it():
    bases = [
        candidate("small"),
        candidate("middle"),
        candidate("english", missing=("Chinese",)),
        candidate("long", above=3),
        candidate("slow", seconds=1e6),
        candidate("tight", "tight"),
        candidate("large", "does not fit"),
    ]
    assert choose_default(bases, lambda name: True).name == "middle"
    assert choose_default(bases, lambda name: name != "middle").name == "small"
    assert choose_default(bases[2:], lambda name: name == "english").name == "english"
    assert choose_default([candidate("unknown time", seconds=None)], lambda name: True).name == "unknown time"


def test_every_proposed_base_can_be_planned_without_the_hub():
    from lora_chat.models.base_config import read_known_configs
    from lora_chat.models.bundled import bundled_base_names

    known = {*read_known_configs(), *bundled_base_names()}
    assert {proposal.name for proposal in BASE_PROPOSALS} <= known


def test_length_limits_count_the_rows_above_them():
    tokens = np.array([10] * 98 + [200, 900])
    lengths = TokenLengths(RowLengths(tokens, tokens, tokens), 1, 100, 5, is_estimated=False, positions=8192)
    assert [(limit.tokens, limit.num_above) for limit in lengths.list_limits()] == [(960, 1), (256, 2), (64, 3)]


def write_rows(rows):
    """Write rows in the working directory, and return their source as `new` reads it."""
    Path("odd.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return find_source(DataSection(train="odd.jsonl"))


def name_task(source):
    return detect_task(read_profile(source), source.roles.task)[0]


def test_a_column_of_replies_comes_before_a_label():
    row = {"title": "A mill", "text": "Where is it?", "category": "place", "reply": "It is by the river."}
    roles = find_column_roles([row] * 9)
    assert (roles.user, roles.assistant, roles.is_guess) == ("text", "reply", True)
    assert roles.reason.endswith("not read: title, category")
    roles = find_column_roles([{"title": "a", "question": "b", "answer": "c", "tag": "d"}])
    assert (roles.user, roles.assistant, roles.task) == ("question", "answer", None)


def test_a_column_with_one_value_is_no_answer():
    roles = find_column_roles([{"text": f"{LONG} {i}", "origin": "web"} for i in range(20)])
    assert (roles.text, roles.assistant) == ("text", None)
    assert roles.reason.endswith("not read: origin")


def test_columns_of_lists_are_listed_as_not_read_and_an_index_does_not_count():
    roles = find_column_roles([{"text": f"{LONG} {i}", "entities": [{"a": 1}]} for i in range(20)])
    assert (roles.text, roles.reason) == ("text", "a guess: plain text; not read: entities")
    assert find_column_roles([{"passages": f"{LONG} {i}", "entities": [{"a": 1}]} for i in range(20)]) is None
    roles = find_column_roles([{"": str(i), "ask": f"{LONG} {i}", "gold": f"No {i} {LONG}"} for i in range(20)])
    assert (roles.user, roles.assistant) == ("ask", "gold")


def test_labels_that_do_not_repeat_are_no_classes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert name_task(write_rows([{"text": f"text {i}", "label": f"id {i}"} for i in range(20)])) != "classification"
    assert name_task(write_rows([{"text": f"text {i}", "label": "ab"[i % 2]} for i in range(20)])) == "classification"


def test_answers_that_are_not_in_the_text_are_not_asked_for_in_its_words(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = [{"context": f"{LONG} {i}", "question": "Who comes?", "answer": f"Zoe{i}"} for i in range(20)]
    assert name_task(write_rows(rows)) != "reading"
    assert name_task(write_rows([row | {"answer": "Ben"} for row in rows])) == "reading"


def test_all_labels_are_in_the_prompt_one_a_line_if_a_label_has_a_comma(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = [{"text": f"text {i}", "label": "ham" if i % 2 else "a, b"} for i in range(2999)]
    rows[1]["label"] = "rare"  # beside the rows that are looked at for the kind of answers
    source, draft = write_rows(rows), RecipeDraft("")
    profile = read_profile(source)
    write_wording(draft, "classification", None, profile)
    assert "rare" not in {item.reference for item in profile.items}
    assert draft.tree["data"]["system"] == "Reply with one of these labels:\na, b\nham\nrare"


def test_an_empty_row_does_not_hide_the_columns(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = [{"text": f"text {i}", "label": "ab"[i % 2]} for i in range(20)]
    assert write_rows([*rows, {"text": "", "label": ""}]).roles.task == "classification"


def test_a_column_without_a_name_is_no_preferred_reply(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    source = write_rows([{"": str(i), "text": f"text {i}", "label": "ab"[i % 2]} for i in range(20)])
    assert name_task(source) == "classification"


def test_a_chosen_task_that_contradicts_the_data_is_noted(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    profile = read_profile(write_rows([{"question": f"{LONG} {i}?", "answer": f"{LONG} {i}."} for i in range(20)]))
    for task in ("classification", "json", "math", "tools", "translation"):
        assert f"does not look like the task {task} that you chose" in find_contradiction(task, profile), task
    assert find_contradiction("instructions", profile) is None
