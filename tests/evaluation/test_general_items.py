"""The shipped general set is complete and fair, files of the user are checked, and samples are stratified."""

import json
from collections import Counter

import pytest

from lora_chat.errors import DataError
from lora_chat.evaluation.general.checks import CHECKS
from lora_chat.evaluation.general.items import read_items, read_shipped_items
from lora_chat.evaluation.general.measure import render_prompts
from lora_chat.evaluation.general.selection import GeneralSet, leave_out_unknown_scripts, sample_items

ITEM = {"id": "a", "language": "en", "kind": "fact", "prompt": "p", "check": "equals", "arguments": {"accept": ["x"]}}


def test_shipped_set_has_all_kinds_in_both_languages():
    items = read_shipped_items()
    assert len(items) >= 120
    strata = Counter((item.language, item.kind) for item in items)
    kinds = ("fact", "instruction", "arithmetic", "unknown", "chat")
    assert set(strata) == {(language, kind) for language in ("en", "zh") for kind in kinds}
    assert min(strata.values()) >= 7
    assert len({item.id for item in items}) == len({item.prompt for item in items}) == len(items)
    assert {item.check for item in items} <= set(CHECKS)
    assert max(len(item.prompt) for item in items) < 150


def test_no_shipped_item_accepts_its_own_prompt_or_an_empty_reply():
    items = [item for item in read_shipped_items() if item.kind not in ("chat", "instruction")]
    assert [item.id for item in items if item.is_answered_by(item.prompt)] == []
    assert [item.id for item in read_shipped_items() if item.is_answered_by("")] == []
    assert [item.id for item in read_shipped_items() if item.is_answered_by("?!")] == []


def test_shipped_facts_and_sums_accept_their_answers_in_a_sentence():
    frames = {"en": "The answer is {}.", "zh": "答案是{}。"}
    for item in read_shipped_items():
        if item.check not in ("contains", "number"):
            continue
        frame = frames[item.language]
        for answer in item.arguments.get("accept", [item.arguments.get("value")]):
            assert item.is_answered_by(frame.format(answer)), item.id
            assert not item.is_answered_by(frame.format(f"x{answer}x" if item.language == "en" else "无")), item.id


def write(path, *rows):
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return str(path)


def test_a_file_has_items_or_questions(tmp_path):
    rows = [ITEM, {"question": "Wo?", "accept": ["hier"]}, "", {"question": "你好吗？", "accept": ["好"]}]
    items = read_items(write(tmp_path / "own.jsonl", *rows))
    assert [(item.id, item.language, item.kind, item.line) for item in items] == [
        ("a", "en", "fact", 1),
        ("line 2", "en", "question", 2),
        ("line 4", "zh", "question", 4),
    ]
    assert items[1].is_answered_by("Hier!")
    again = read_items(write(tmp_path / "again.jsonl", *(item.as_row for item in items)))
    assert again == items
    assert items[0].with_texts(["q", "y"]).texts == ["q", "y"]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ("{", "is not valid JSON"),
        ("[]", "must be a JSON object"),
        ({**ITEM, "id": ""}, "field `id`"),
        ({**ITEM, "id": "a\x1b[2J"}, "control character"),
        ({**ITEM, "kind": 3}, "field `kind`"),
        ({**ITEM, "prompt": "x" * 4001}, "field `prompt`"),
        ({**ITEM, "check": "regex"}, "field `check` must be one of contains"),
        ({**ITEM, "check": ["equals"]}, "field `check`"),
        ({**ITEM, "arguments": {}}, "needs the argument `accept`"),
        ({**ITEM, "arguments": []}, "field `arguments`"),
        ({**ITEM, "prompts": 1}, "unknown key 'prompts'"),
        ({"question": "Wo?", "accept": "hier"}, "needs the argument `accept`"),
        ({"question": 3, "accept": ["x"]}, "field `question`"),
        ('{"question": "\\ud800", "accept": ["x"]}', "surrogate"),
        (ITEM, "already in line 1"),
    ],
)
def test_a_wrong_line_is_named(tmp_path, row, reason):
    path = write(tmp_path / "own.jsonl", ITEM, row)
    with pytest.raises(DataError, match=reason) as caught:
        read_items(path)
    assert str(caught.value).startswith(f"{path}:2: ")


def test_an_empty_or_huge_file_is_refused(tmp_path):
    with pytest.raises(DataError, match="contains no item"):
        read_items(write(tmp_path / "empty.jsonl", ""))
    with pytest.raises(DataError, match="more than 2,000 items"):
        read_items(write(tmp_path / "huge.jsonl", *({**ITEM, "id": str(n)} for n in range(2001))))


@pytest.mark.parametrize("count", [40, 80])
def test_a_sample_has_every_kind_in_its_share_and_never_changes(count):
    items = read_shipped_items()
    sample = sample_items(items, count)
    assert len(sample) == len({item.id for item in sample}) == count
    assert sample == sample_items(items, count)
    assert [items.index(item) for item in sample] == sorted(items.index(item) for item in sample)
    strata, sampled = (Counter((item.language, item.kind) for item in part) for part in (items, sample))
    assert all(abs(sampled[key] - count * size / len(items)) <= 1 for key, size in strata.items())
    assert {item.id for item in sample_items(items, 40)} <= {item.id for item in sample_items(items, 80)}


def test_only_a_sampled_set_offers_smaller_numbers():
    items = read_shipped_items()
    assert GeneralSet(items, len(items), is_sampled=True).counts == (40, 80, len(items))
    assert GeneralSet(items[:30], 30, is_sampled=True).counts == (30,)
    assert GeneralSet(items, len(items)).counts == (len(items),)
    assert len(GeneralSet(items, len(items)).take(40).items) == 40


def test_items_in_an_unknown_script_are_left_out(tiny_tokenizer):
    known = leave_out_unknown_scripts(read_shipped_items(), tiny_tokenizer)
    assert {item.language for item in known} == {"en"}


def test_prompts_have_no_system_message(tiny_tokenizer):
    (ids,) = render_prompts(tiny_tokenizer, read_shipped_items()[:1])
    assert tiny_tokenizer.decode(ids).startswith("<|im_start|>user\nWhat is the capital")
    assert tiny_tokenizer.decode(ids).endswith("<|im_start|>assistant\n")
