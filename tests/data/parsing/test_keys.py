"""Every key of a row, message or part is used, refused by name, or counted as not used."""

import json

import pytest

from lora_chat.data.parsing.keys import MEANINGFUL_KEYS
from lora_chat.data.parsing.rows import ReadingOptions, read_dialogues
from lora_chat.errors import DataError

USER, REPLY = {"role": "user", "content": "Is it open?"}, {"role": "assistant", "content": "Until six."}
ROW = {"messages": [USER, REPLY]}
PAIR = [("user", "Is it open?"), ("assistant", "Until six.")]


@pytest.fixture
def read(tmp_path):
    """A function that reads rows, and returns (role, content) of each message and the counts."""

    def run(*rows, **options):
        path = tmp_path / "rows.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        dialogues, counts = read_dialogues(path, options=ReadingOptions(**options))
        return [[(m.role, m.content) for m in dialogue.messages] for dialogue in dialogues], counts

    return run


@pytest.fixture
def refusal(read):
    """A function that returns the message for refused rows."""

    def run(*rows, **options):
        with pytest.raises(DataError) as caught:
            read(*rows, **options)
        return str(caught.value)

    return run


def value_of(rule):
    return next(value for value in ("a text", 0.5, True, False) if rule.carries_meaning(value))


USED = {"system", "system_prompt", "system_message", "system_instruction", "system_instructions", "tools", "functions"}
ROW_KEYS = [(name, value_of(rule)) for rule in MEANINGFUL_KEYS if "row" in rule.places for name in rule.names]
USED_IN_MESSAGES = {"reasoning_content", "reasoning", "thinking", "tool_calls", "function_call", "thought", "system"}


@pytest.mark.parametrize(("name", "value"), [pair for pair in ROW_KEYS if pair[0] not in USED])
def test_a_key_with_meaning_is_refused_by_name_and_can_be_ignored(read, refusal, name, value):
    for key in (name, name.title().replace("_", "")):
        message = refusal({**ROW, key: value})
        assert key in message
        assert f"data.ignore_keys={key}" in message
        dialogues, counts = read({**ROW, key: value}, ignored_keys=(key,))
        assert dialogues == [PAIR]
        assert counts.unused_keys == {key: 1}


@pytest.mark.parametrize("value", [None, "", [], {}, [None], "null", [{"a": ""}], float("nan")])
def test_empty_values_carry_no_meaning(read, value):
    text = json.dumps({**ROW, "images": "VALUE", "note": "VALUE"})
    if value == value:
        assert read(json.loads(text.replace('"VALUE"', json.dumps(value))))[1].unused_keys == {}


def test_other_keys_are_counted_once_for_each_row(read):
    rows = [{**ROW, "id": n, "source": "shop"} for n in range(3)]
    _, counts = read(*rows, {**ROW, "id": 4})
    assert counts.unused_keys == {"id": 4, "source": 3}


@pytest.mark.parametrize("key", ["system", "system_prompt", "system_message"])
@pytest.mark.parametrize(
    "row",
    [
        ROW,
        {"conversations": [USER, REPLY]},
        {"conversations": [{"from": "human", "value": "Is it open?"}, {"from": "gpt", "value": "Until six."}]},
        {"prompt": [USER], "completion": [REPLY]},
        {"prompt": "Is it open?", "completion": "Until six."},
        {"instruction": "Is it open?", "output": "Until six."},
    ],
)
def test_a_system_message_beside_the_messages_is_the_first_message(read, refusal, row, key):
    assert read({**row, key: "Be brief."})[0] == [[("system", "Be brief."), *PAIR]]


def test_a_second_system_message_must_be_equal(read, refusal):
    inner = {"messages": [{"role": "system", "content": "Be brief."}, USER, REPLY]}
    assert read({**inner, "system": "Be brief."})[0] == [[("system", "Be brief."), *PAIR]]
    assert "system" in refusal({**inner, "system": "Be long."})


def test_two_conversations_in_a_row_must_be_equal(read, refusal):
    same = [{"from": "human", "value": "Is it open?"}, {"from": "gpt", "value": "Until six."}]
    assert read({**ROW, "conversations": same})[0] == [PAIR]
    other = [{"from": "human", "value": "Is it open?"}, {"from": "gpt", "value": "No."}]
    assert "conversations" in refusal({**ROW, "conversations": other})
    assert "prompt" in refusal({**ROW, "prompt": "Is it?", "completion": "No."})


@pytest.mark.parametrize(
    "mark", [{"label": False}, {"kto_tag": "false"}, {"label": 0}, {"rejected": True}, {"weight": 0}]
)
def test_unwanted_rows_are_refused_or_left_out(read, refusal, mark):
    message = refusal({**ROW, **mark}, ROW)
    assert "preference data" in message
    assert "data.drop_unwanted=true" in message
    dialogues, counts = read({**ROW, **mark}, ROW, drop_unwanted=True)
    assert dialogues == [PAIR]
    assert (counts.lines, counts.accepted, counts.unwanted) == (2, 1, 1)


BAD = {"role": "assistant", "content": "Go away."}
PAIRS = [
    {"prompt": "Is it open?", "chosen": "Until six.", "rejected": "Go away."},
    {"prompt": [USER], "chosen": [REPLY], "rejected": [BAD]},
    {"chosen": [USER, REPLY], "rejected": [USER, BAD]},
    {"messages": [USER], "chosen": REPLY, "rejected": BAD},
    {"messages": [USER, REPLY], "rejected_response": "Go away."},
    {"instruction": "Is it open?", "input": "", "chosen": "Until six.", "rejected": "Go away."},
    {"question": "Is it open?", "chosen": "Until six.", "rejected": "Go away."},
    {"conversations": [{"from": "human", "value": "Is it open?"}], "chosen": {"from": "gpt", "value": "Until six."},
     "rejected": {"from": "gpt", "value": "Go away."}},
]  # fmt: skip


@pytest.mark.parametrize("row", PAIRS)
def test_preference_pairs_are_refused_or_trained_on_the_chosen_reply(read, refusal, row):
    message = refusal(row)
    assert "preference" in message
    assert "to train on the" in message
    assert "data.drop_unwanted=true" in message
    assert read(row, drop_unwanted=True)[0] == [PAIR]


def test_a_class_beside_a_text_is_refused(refusal):
    for label in ("opening_hours", 0, 3):
        assert "label" in refusal({"text": "Is it open?", "label": label})


def parts(*weights):
    return [{"type": "text", "text": f"{n}. ", "weight": weight} for n, weight in enumerate(weights)]


def test_weights_of_parts_are_obeyed_or_refused(read, refusal):
    assert read({"messages": [USER, {**REPLY, "content": parts(1, 1)}]})[0] == [[PAIR[0], ("assistant", "0. 1. ")]]
    assert "weight" in refusal({"messages": [USER, {**REPLY, "content": parts(0, 1)}]})
    assert "trained" in refusal({"messages": [USER, {**REPLY, "content": parts(0, 0)}]})


def test_loss_on_a_question_is_refused(refusal):
    assert "train" in refusal({"messages": [{**USER, "train": True}, REPLY]})


def test_keys_of_messages_and_parts_are_counted_with_their_place(read, refusal):
    message = {**REPLY, "id": "m1", "content": [{"type": "text", "text": "Until six.", "style": "calm"}]}
    dialogues, counts = read({"messages": [USER, message]})
    assert dialogues == [PAIR]
    assert counts.unused_keys == {"id of messages": 1, "style of parts": 1}
    assert "images" in refusal({"messages": [{**USER, "images": ["a.png"]}, REPLY]})
