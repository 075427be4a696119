"""Messages in every form that data sets have mean the same dialogue as `role` and `content`."""

import json

import pyarrow as pa
import pytest
from pyarrow import parquet

from lora_chat.data.dialogue import InvalidDialogueError
from lora_chat.data.parsing.formats import detect_format, to_messages
from lora_chat.data.parsing.messages import parse_dialogue
from lora_chat.data.parsing.roles import SPEAKERS, find_speaker
from lora_chat.data.parsing.row_notes import RowNotes
from lora_chat.data.parsing.rows import ReadingOptions, read_dialogues
from lora_chat.errors import DataError

Q, A = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}
CALL = {"name": "clock", "arguments": {"zone": "UTC"}}


def parse(row, notes=None):
    return parse_dialogue(to_messages(row, detect_format(row)), notes=notes)


def refusal(row):
    with pytest.raises(InvalidDialogueError) as caught:
        parse(row)
    return str(caught.value)


def calls_of(message):
    return [(call.name, json.loads(call.arguments)) for call in message.tool_calls]


@pytest.mark.parametrize("name", ["Human", " USER ", "prompter", "Human:", "user"])
@pytest.mark.parametrize("answerer", ["GPT", "model", "Assistant", "chatgpt", "bot", "AI", "bing", "bard"])
@pytest.mark.parametrize(
    ("speaker", "text"),
    [
        ("role", "content"),
        ("from", "value"),
        ("role", "value"),
        ("from", "content"),
        ("role", "text"),
        ("speaker", "text"),
    ],
)
def test_every_name_under_every_key_is_a_role(name, answerer, speaker, text):
    row = {"messages": [{speaker: name, text: "q"}, {speaker: answerer, text: "a"}]}
    assert parse(row).as_dicts == [Q, A]


def test_every_known_name_has_one_meaning():
    assert {find_speaker(name.upper().replace("_", " ")) for name in SPEAKERS} == {*SPEAKERS.values()}
    assert [find_speaker(name) for name in ("narrator", None, 3, "", "user" * 100)] == [None] * 5


@pytest.mark.parametrize("key", ["messages", "conversations", "conversation", "dialog", "dialogue", "turns", "chat"])
def test_a_list_of_messages_is_found_under_every_key(key):
    assert parse({key: [Q, A]}).as_dicts == [Q, A]
    assert parse({key: json.dumps([Q, A])}).as_dicts == [Q, A]
    assert parse({key: {"role": ["user", "assistant"], "content": ["q", "a"]}}).as_dicts == [Q, A]


def test_a_text_under_turns_is_the_setting_and_not_a_list():
    dialogue = parse({"messages": [Q, A, Q, A], "turns": "last"})
    assert [message.trained for message in dialogue.messages[1::2]] == [False, True]


@pytest.mark.parametrize(
    "messages",
    [
        json.dumps(json.dumps([Q, A])),
        [json.dumps(Q), json.dumps(A)],
        [{"human": "q", "assistant": "a"}],
        [{"human": "q"}, {"gpt": "a"}],
        [{"system": "", "input": "q", "output": "a"}],
        [{"role": "user", "content": "q", "text": "q"}, {"role": "assistant", "content": "a", "value": None}],
        [{"role": "user", "parts": [{"text": "q"}]}, {"role": "model", "parts": [{"text": "a"}]}],
    ],
)
def test_messages_of_other_shapes_are_the_same_dialogue(messages):
    assert parse({"messages": messages}).as_dicts == [Q, A]


@pytest.mark.parametrize(
    ("messages", "told"),
    [
        (
            [{"role": "user", "content": "q", "text": "other"}, A],
            "message 1 (user) has `content` and `text`, which differ",
        ),
        ([{"role": "user", "from": "gpt", "content": "q"}, A], "has the roles 'user' and 'gpt', which differ"),
        ([{"role": "narrator", "content": "q"}, A], "has the role 'narrator'; known roles are system, developer, user"),
        ("[{'role': 'user', 'content': 'q'}]", "it is the text of a Python object; write it with json.dumps"),
        ('[{"role": "user", "content": NaN}]', "contains NaN"),
        ("[" * 200 + "]" * 200, "nested too deeply"),
        ([Q, {"role": "assistant", "content": None}], "message 2 (assistant) has no text as `content` but null"),
        ([Q, {"role": "assistant", "content": {"a": 1}}], "has no text as `content` but an object"),
        ([Q, {"role": "assistant", "content": ["yes", "no"]}], "pieces of one text or alternatives; join them"),
    ],
)
def test_refuses_messages_whose_meaning_is_unclear(messages, told):
    assert told in refusal({"messages": messages})


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (4, "4"), (-17, "-17"), (0.5, "0.5"), (2.0, "2.0"), (True, "true"), (False, "false"), ("", None)],
)
def test_numbers_and_booleans_are_texts_as_json_writes_them(tmp_path, value, text):
    rows = {
        "columns": {"q": value, "a": value},
        "alpaca": {"instruction": value, "output": value},
        "prompt_completion": {"prompt": value, "completion": value},
        "messages": {"messages": [{"role": "user", "content": value}, {"role": "assistant", "content": value}]},
    }
    for data_format, row in rows.items():
        (tmp_path / "one.jsonl").write_text(json.dumps(row))
        options = ReadingOptions(columns={"user": "q", "assistant": "a"} if data_format == "columns" else {})
        if text is None:
            with pytest.raises(DataError, match=r"one\.jsonl:1: message . \(user\) is empty"):
                read_dialogues(tmp_path / "one.jsonl", options=options)
        else:
            (dialogue,), _ = read_dialogues(tmp_path / "one.jsonl", options=options)
            assert [message.content for message in dialogue.messages] == [text, text]


def test_a_whole_number_of_a_parquet_column_of_floats_is_refused(tmp_path):
    options = ReadingOptions(columns={"user": "q", "assistant": "a"})
    path = tmp_path / "rows.parquet"
    parquet.write_table(pa.table({"q": ["1 and 1?", "?"], "a": [2.0, None]}), path)
    with pytest.raises(DataError, match=r"2 in a column of floats, which may mean 2 or 2\.0(.|\n)*parquet:2: .* null"):
        read_dialogues(path, options=options)
    parquet.write_table(pa.table({"q": ["half?", "one?"], "a": [0.5, 1.0]}), path)
    assert [d.messages[1].content for d in read_dialogues(path, options=options)[0]] == ["0.5", "1.0"]


@pytest.mark.parametrize(
    "content",
    [
        [{"type": "text", "value": "two parts"}],
        [{"text": "two "}, {"type": "output_text", "text": "parts", "annotations": []}],
        ["two ", {"type": "input_text", "content": "parts"}],
        ["two ", "parts"],
        {"type": "text", "text": "two parts", "image_url": None},
    ],
)
def test_parts_of_every_form_are_one_text(content):
    assert parse({"messages": [Q, {"role": "assistant", "content": content}]}).messages[1].content == "two parts"


@pytest.mark.parametrize(
    "part", [{"type": "thinking", "thinking": "hm", "signature": "x"}, {"type": "reasoning", "text": "hm"}]
)
def test_parts_with_reasoning_are_reasoning(part):
    message = parse(
        {"messages": [Q, {"role": "assistant", "content": [part, {"type": "text", "text": "a"}]}]}
    ).messages[1]
    assert (message.content, message.reasoning) == ("a", "hm")


@pytest.mark.parametrize(
    ("part", "told"),
    [
        ({"type": "image_url", "image_url": {"url": "x"}}, "'image_url'"),
        ({"type": "image"}, "'image'"),
        ({"type": "input_audio", "input_audio": {}}, "'input_audio'"),
        ({"type": "text", "text": "a", "image": "x"}, "'image'"),
        ({"type": "text", "text": "a", "weight": 0}, "no assistant message that is trained"),
        ({"type": "wisdom", "text": "a"}, "of the type 'wisdom'"),
        ({"type": "text", "text": "a", "value": "b"}, "`text` and `value`"),
        ({"type": "text"}, "not text"),
    ],
)
def test_refuses_parts_by_name(part, told):
    assert told in refusal({"messages": [Q, {"role": "assistant", "content": [part]}]})


@pytest.mark.parametrize("key", ["loss_weight", "loss_scale", "weight", "loss", "train", "training"])
def test_flags_of_every_tool_decide_about_loss(key):
    values = (0.0, 1.0) if key in ("loss_weight", "loss_scale", "weight") else (False, True)
    dialogue = parse({"messages": [Q, {**A, key: values[0]}, Q, {**A, key: values[1]}]})
    assert [message.trained for message in dialogue.messages[1::2]] == [False, True]


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ({"time": "12:00", "zone": None}, '{"time": "12:00", "zone": null}'),
        (["Zürich", 2], '["Zürich", 2]'),
        ([], "[]"),
        (12.5, "12.5"),
        ([{"type": "text", "text": "noon"}], "noon"),
        ('{"a":1}', '{"a":1}'),
    ],
)
def test_results_of_tools_are_json_text(content, text):
    messages = [Q, {**A, "tool_calls": [CALL]}, {"role": "tool", "content": content}, A]
    assert parse({"messages": messages}).messages[2].content == text


@pytest.mark.parametrize(
    "call",
    [
        {"function": CALL},
        {"type": "function", "id": "1", "function": {**CALL, "arguments": json.dumps(CALL["arguments"])}},
        {"name": "clock", "parameters": {"zone": "UTC"}},
        {"type": "tool_use", "name": "clock", "input": {"zone": "UTC"}},
        {"function": {"name": "clock", "arguments": json.dumps(json.dumps(CALL["arguments"]))}},
        {"function": json.dumps(CALL)},
        {"function": "clock", "arguments": {"zone": "UTC"}},
        json.dumps(CALL),
    ],
)
def test_calls_of_every_form_are_the_same(call):
    rest = [{"role": "tool", "content": "noon"}, A]
    for calls in ([call], json.dumps([call])):
        dialogue = parse({"messages": [Q, {"role": "assistant", "tool_calls": calls}, *rest]})
        assert calls_of(dialogue.messages[1]) == [("clock", {"zone": "UTC"})]


def test_the_earlier_function_call_of_openai_is_a_call():
    messages = [Q, {"role": "assistant", "content": None, "function_call": {"name": "clock", "arguments": "{}"}}]
    messages += [{"role": "function", "name": "clock", "content": "noon"}, A]
    dialogue = parse({"messages": messages})
    assert calls_of(dialogue.messages[1]) == [("clock", {})]
    assert (dialogue.messages[2].role, dialogue.messages[2].name) == ("tool", "clock")


@pytest.mark.parametrize(
    "content",
    [
        json.dumps(CALL),
        CALL,
        [CALL],
        json.dumps([CALL]),
        f"<tool_call>\n{json.dumps(CALL)}\n</tool_call>",
        json.dumps({**CALL, "arguments": json.dumps(CALL["arguments"])}),
        [{"type": "text", "text": json.dumps(CALL)}],
    ],
)
@pytest.mark.parametrize(
    ("call", "result"), [("tool_call", "tool_response"), ("function_call", "observation"), ("Function-Call", "ipython")]
)
def test_calls_and_results_as_roles_are_calls_and_results(content, call, result):
    messages = [Q, {"role": call, "content": content}, {"role": result, "content": "noon"}, A]
    dialogue = parse({"messages": messages})
    assert [message.role for message in dialogue.messages] == ["user", "assistant", "tool", "assistant"]
    assert calls_of(dialogue.messages[1]) == [("clock", {"zone": "UTC"})]


def test_calls_that_follow_each_other_are_parallel_calls_of_one_message():
    first, second = ({"role": "tool_call", "content": json.dumps({"name": name, "arguments": {}})} for name in "fg")
    results = [{"role": "tool_response", "content": "1"}, {"role": "tool_response", "content": "2"}, A]
    notes = RowNotes()
    both = parse({"messages": [Q, A, first, second, *results]}, notes)
    one = parse({"messages": [Q, {**first, "content": f"{first['content']}\n{second['content']}"}, *results]})
    assert [message.role for message in both.messages] == ["user", "assistant", "tool", "tool", "assistant"]
    assert both.messages[1].content == "a"
    assert calls_of(both.messages[1]) == calls_of(one.messages[1]) == [("f", {}), ("g", {})]
    assert notes.counts == {"joined_calls": 2}


def test_reasoning_before_a_call_as_text_is_kept():
    call = {"from": "function_call", "value": f"<think>\nLook.\n</think>\n\n{json.dumps(CALL)}"}
    row = {"conversations": [Q, call, {"from": "observation", "value": "noon"}, {"from": "gpt", "value": "a"}]}
    assert parse(row).messages[1].reasoning == "Look."


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("just words", "not valid JSON"),
        ("", "not valid JSON"),
        ('{"name": "f"} and more', "not valid JSON"),
        ("[]", "empty list"),
        ("{} " * 100_000, "needs a function with a name"),
        ("<tool_call>{}", "text beside its <tool_call> tags, or a tag without its end"),
        ("4", "needs a function with a name"),
        ({"name": "f", "arguments": "[1]"}, "not a JSON object"),
        ({"name": "f", "arguments": {"a": 1}, "parameters": {"a": 2}}, "there twice and differ"),
        ({"name": "f", "arguments": {}, "result": "noon"}, "'result', which would be lost"),
    ],
)
def test_refuses_calls_that_cannot_be_read(content, told):
    assert told in refusal({"messages": [Q, {"role": "tool_call", "content": content}, A]})


def test_parts_with_calls_and_results_are_calls_and_results():
    use = {"type": "tool_use", "id": "t1", "name": "clock", "input": {"zone": "UTC"}}
    result = {"type": "tool_result", "tool_use_id": "t1", "content": [{"type": "text", "text": "noon"}]}
    messages = [
        Q,
        {"role": "assistant", "content": [{"type": "text", "text": "Let me see."}, use]},
        {"role": "user", "content": [result]},
        A,
    ]
    dialogue = parse({"messages": messages})
    assert [message.role for message in dialogue.messages] == ["user", "assistant", "tool", "assistant"]
    assert (dialogue.messages[1].content, dialogue.messages[2].tool_call_id) == ("Let me see.", "t1")
    assert calls_of(dialogue.messages[1]) == [("clock", {"zone": "UTC"})]


@pytest.mark.parametrize("history", [[["x", "y"]], [{"query": "x", "response": "y"}], json.dumps([["x", "y"]])])
def test_query_response_and_history_are_turns(history):
    row = {"system": "s", "query": "q", "response": "a", "history": history}
    assert [message.content for message in parse(row).messages] == ["s", "x", "y", "q", "a"]


@pytest.mark.parametrize(
    "tools", [[CALL], json.dumps([CALL]), [json.dumps(CALL)], CALL, json.dumps(json.dumps([CALL]))]
)
def test_tools_of_every_form_are_a_list(tools):
    assert parse({"messages": [Q, A], "tools": tools}).tool_list == [CALL]


def test_a_prompt_of_messages_takes_a_text_as_completion():
    row = {"prompt": [Q, {"role": "gpt", "content": "b"}, Q], "completion": "a"}
    dialogue = parse(row)
    assert [message.content for message in dialogue.messages] == ["q", "b", "q", "a"]
    assert [message.trained for message in dialogue.messages[1::2]] == [False, True]
