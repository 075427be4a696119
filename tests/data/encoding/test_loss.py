"""`data.loss`: which tokens of a dialogue carry loss."""

import copy
from pathlib import Path

import pytest
import trl
from test_encode import make_merging_tokenizer

from lora_chat.config.data import DataSection
from lora_chat.data.dialogue import InvalidDialogueError
from lora_chat.data.encoding.encode import IGNORE_INDEX, encode_dialogue
from lora_chat.data.parsing.messages import parse_dialogue
from lora_chat.data.parsing.rows import ReadingOptions, RowChunk, parse_chunk
from lora_chat.data.reading.raw_row import RawRow

QWEN3 = Path(trl.__file__).parent / "chat_templates" / "qwen3.jinja"


def user(text):
    return {"role": "user", "content": text}


def assistant(text, **more):
    return {"role": "assistant", "content": text, **more}


@pytest.fixture(scope="module")
def chatml():
    from lora_chat.data.encoding.bundled_templates import CHATML_TEMPLATE

    tokenizer = make_merging_tokenizer()
    tokenizer.chat_template = CHATML_TEMPLATE
    return tokenizer


@pytest.fixture(scope="module")
def qwen3(chatml):
    tokenizer = copy.deepcopy(chatml)
    tokenizer.chat_template = QWEN3.read_text(encoding="utf-8")
    return tokenizer


def rows_of(tokenizer, messages, **row):
    return encode_dialogue(parse_dialogue({"messages": messages, **row}), tokenizer, [tokenizer.eos_token_id])


def spans(tokenizer, row, *, with_loss):
    kept = [t for t, label in zip(row.input_ids, row.labels, strict=True) if (label != IGNORE_INDEX) == with_loss]
    return tokenizer.decode(kept)


TALK = [user("first"), assistant("one"), user("second"), assistant("two")]


def test_all_puts_loss_on_every_token_of_the_row(chatml):
    (row,) = rows_of(chatml, [{"role": "system", "content": "brief"}, *TALK], loss="all")
    (replies,) = rows_of(chatml, [{"role": "system", "content": "brief"}, *TALK])
    assert row.labels == row.input_ids == replies.input_ids
    assert row.reply_ends == replies.reply_ends
    assert replies.supervised_tokens < row.supervised_tokens


def test_all_leaves_replies_that_are_not_trained_without_loss(chatml):
    talk = [TALK[0], assistant("one", train=False), *TALK[2:]]
    (row,) = rows_of(chatml, talk, loss="all")
    assert spans(chatml, row, with_loss=False) == "one<|im_end|>"
    assert [messages for messages, _ in row.reply_ends] == [4]


def test_last_trains_the_last_reply_only(chatml):
    (row,) = rows_of(chatml, TALK, loss="last")
    assert spans(chatml, row, with_loss=True) == "two<|im_end|>"


def test_all_trains_each_message_once_where_the_template_rewrites_history(qwen3):
    replies = rows_of(qwen3, TALK)
    rows = rows_of(qwen3, TALK, loss="all")
    assert [row.input_ids for row in rows] == [row.input_ids for row in replies]
    assert len(rows) == 2
    assert rows[0].labels == rows[0].input_ids
    trained = spans(qwen3, rows[1], with_loss=True)
    assert trained.startswith("second<|im_end|>")
    assert trained.endswith("two<|im_end|>")
    assert "one" not in trained


def test_all_trains_no_text_of_an_untrained_reply_where_the_template_rewrites_history(qwen3):
    (row,) = rows_of(qwen3, [TALK[0], assistant("one", train=False), *TALK[2:]], loss="all")
    assert spans(qwen3, row, with_loss=True).startswith("second<|im_end|>")


def test_all_trains_no_token_twice_where_tokens_cross_the_border_of_a_turn(chatml):
    tokenizer = copy.deepcopy(chatml)
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m.role + ':\n\n\n' + m.content + '<|im_end|>' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'assistant:\n' }}{% endif %}"
    )
    rows = rows_of(tokenizer, TALK, loss="all")
    assert len(rows) == 2
    assert rows[0].labels == rows[0].input_ids
    assert spans(tokenizer, rows[1], with_loss=False) == spans(tokenizer, rows[0], with_loss=True)


def test_all_refuses_a_prompt_that_is_marked_as_not_trained():
    with pytest.raises(InvalidDialogueError, match=r"message 1 \(user\) is marked as not trained"):
        parse_dialogue({"messages": [user("first") | {"train": False}, *TALK[1:]], "loss": "all"})


def test_a_row_decides_over_the_recipe():
    rows = {"a": {"turns": "last"}, "b": {"loss": "replies"}, "c": {}, "d": {"loss": "all"}}
    raw = tuple(RawRow(n, {"messages": TALK, **row}) for n, row in enumerate(rows.values(), 1))
    chunk = RowChunk("a.jsonl", "messages", raw)
    parsed, _ = parse_chunk(chunk, ReadingOptions(loss_on_prompts=True))
    assert [dialogue.loss_on_prompts for dialogue in parsed] == [False, False, True, True]
    assert [dialogue.messages[1].trained for dialogue in parsed] == [False, True, True, True]
    parsed, _ = parse_chunk(chunk, ReadingOptions(last_turn_only=True))
    assert not any(dialogue.loss_on_prompts or dialogue.messages[1].trained for dialogue in parsed)
    with pytest.raises(InvalidDialogueError, match="contradicts"):
        parse_dialogue({"messages": TALK, "turns": "last", "loss": "all"})


def test_the_row_of_a_dialogue_keeps_its_loss():
    dialogue = parse_dialogue({"messages": TALK, "loss": "all"})
    assert dialogue.loss_on_prompts
    assert parse_dialogue(dialogue.as_row) == dialogue


@pytest.mark.parametrize(
    ("section", "source", "expected"),
    [
        ({}, {}, ("all", "replies")),
        ({"loss": "last"}, {}, ("last", "last")),
        ({"turns": "last"}, {}, ("last", "replies")),
        ({"turns": "last", "loss": "last"}, {}, ("last", "last")),
        ({"loss": "all"}, {}, ("all", "all")),
        ({"loss": "all"}, {"turns": "last"}, ("last", "last")),
        ({"loss": "all"}, {"loss": "replies"}, ("all", "replies")),
        ({"loss": "last"}, {"loss": "replies"}, ("all", "replies")),
        ({"loss": "last"}, {"turns": "all"}, ("all", "replies")),
        ({"turns": "last"}, {"loss": "all"}, ("all", "all")),
        ({}, {"loss": "last"}, ("last", "last")),
    ],
)
def test_a_source_decides_over_the_section(section, source, expected):
    (resolved,) = DataSection(train={"path": "a.jsonl", **source}, **section).train_sources
    assert (resolved.turns, resolved.loss) == expected


@pytest.mark.parametrize("settings", [{"turns": "last", "loss": "all"}, {"turns": "all", "loss": "last"}])
def test_refuses_turns_and_loss_that_contradict_each_other(settings):
    with pytest.raises(ValueError, match="contradicts"):
        DataSection(train="a.jsonl", **settings)
    with pytest.raises(ValueError, match="contradicts"):
        DataSection(train={"path": "a.jsonl", **settings})


def test_a_stored_section_can_be_read_again():
    section = DataSection(train="a.jsonl", loss="last")
    assert DataSection.model_validate(section.model_dump(mode="json")) == section
