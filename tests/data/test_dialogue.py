import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lora_chat.data.dialogue import Dialogue, InvalidDialogueError, Message
from lora_chat.data.parsing.messages import parse_dialogue


def message(role, content="words"):
    return {"role": role, "content": content}


USER, ASSISTANT, SYSTEM = message("user"), message("assistant"), message("system")


def refusal(row):
    with pytest.raises(InvalidDialogueError) as caught:
        parse_dialogue(row)
    return str(caught.value)


@pytest.mark.parametrize("turns", [1, 2, 5])
@pytest.mark.parametrize("head", [[], [SYSTEM]])
def test_user_and_assistant_in_turn_are_a_dialogue(head, turns):
    messages = head + [USER, ASSISTANT] * turns
    dialogue = parse_dialogue({"messages": messages}, 12)
    assert dialogue.as_dicts == messages
    assert dialogue.line == 12


def test_other_keys_of_the_row_are_not_read():
    row = {"messages": [USER, ASSISTANT], "id": 3, "chat_template_kwargs": {"chat_template": "{{ 7 }}"}}
    assert parse_dialogue(row) == Dialogue((Message("user", "words"), Message("assistant", "words")))


def test_content_is_kept_to_the_letter():
    odd = " \n two  spaces\t\r\nand \U0001f642 <|im_end|> \x00 "
    dialogue = parse_dialogue({"messages": [message("user", odd), message("assistant", odd)]})
    assert [m.content for m in dialogue.messages] == [odd, odd]


def test_an_empty_system_message_is_allowed():
    assert parse_dialogue({"messages": [message("system", ""), USER, ASSISTANT]}).messages[0].content == ""


@pytest.mark.parametrize("row", [None, 3, "text", [], [USER, ASSISTANT], True])
def test_refuses_a_row_that_is_not_an_object(row):
    assert "JSON object" in refusal(row)


def test_a_row_without_messages_names_the_keys_it_has():
    told = refusal({"prompt": "a", "completion": "b"})
    assert "messages" in told
    assert "'prompt', 'completion'" in told
    assert "none" in refusal({})


@pytest.mark.parametrize("messages", [None, [], {}, "text", 3, {"role": "user", "content": "x"}])
def test_refuses_messages_that_are_not_a_filled_list(messages):
    assert "at least one message" in refusal({"messages": messages})


@pytest.mark.parametrize("entry", [None, "text", 3, ["user", "words"]])
def test_a_message_must_be_an_object(entry):
    assert "message 2 is not an object" in refusal({"messages": [USER, entry]})


@pytest.mark.parametrize("role", ["narrator", "gpt-9", "users", "", None, 3, [], {}])
def test_an_unknown_role_names_the_known_ones(role):
    told = refusal({"messages": [message(role), ASSISTANT]})
    assert "message 1" in told
    assert repr(role) in told
    assert "system, developer, user, assistant, tool" in told


@pytest.mark.parametrize(
    "content", [None, ["a", "b"], [{"type": "image_url", "image_url": {}}], [], {}, [[]], {"text": 3}]
)
def test_content_must_be_text(content):
    told = refusal({"messages": [USER, message("assistant", content)]})
    assert "message 2 (assistant)" in told
    assert "content" in told


def test_refuses_missing_content():
    assert "message 1 (user)" in refusal({"messages": [{"role": "user"}, ASSISTANT]})


@pytest.mark.parametrize("content", ["", " ", "\n\t", "\u00a0\u2003"])
@pytest.mark.parametrize(("place", "role"), [(0, "user"), (1, "assistant")])
def test_blank_content_is_refused(content, place, role):
    messages = [dict(USER), dict(ASSISTANT)]
    messages[place]["content"] = content
    assert f"message {place + 1} ({role}) is empty" in refusal({"messages": messages})


@pytest.mark.parametrize("key", ["thoughts", "function_call", "audio", "tool_plan"])
def test_refuses_unknown_keys_of_a_message_by_name(key):
    assert key in refusal({"messages": [USER, {**ASSISTANT, key: "x"}]})


@pytest.mark.parametrize("content", ["a\ud800", "\udfff", "\ude00\ud83d"])
def test_half_a_surrogate_pair_is_refused(content):
    told = refusal({"messages": [USER, message("assistant", content)]})
    assert "message 2" in told
    assert "surrogate" in told
    told.encode()


@pytest.mark.parametrize("row", [{"\ud800": 1}, {"messages": [{**USER, "\ud800": 1}, ASSISTANT]}])
def test_a_refusal_can_always_be_written_down(row):
    refusal(row).encode()


def test_a_refusal_sends_no_control_characters_to_the_terminal():
    assert "\x1b" not in refusal({"\x1b[2Jmessage": []})


@pytest.mark.parametrize(
    ("messages", "told"),
    [
        ([USER], "no assistant message"),
        ([USER, USER], "no assistant message"),
        ([SYSTEM], "no assistant message"),
        ([SYSTEM, USER], "no assistant message"),
    ],
)
def test_refuses_a_dialogue_without_replies(messages, told):
    assert told in refusal({"messages": messages})


@settings(deadline=None, max_examples=200, derandomize=True)
@given(st.lists(st.sampled_from(["system", "user", "assistant"]), min_size=1, max_size=7))
def test_every_order_with_a_reply_is_kept_up_to_its_last_reply(roles):
    row = {"messages": [message(role) for role in roles]}
    if "assistant" in roles:
        end = len(roles) - roles[::-1].index("assistant")
        assert [m.role for m in parse_dialogue(row).messages] == roles[:end]
    else:
        refusal(row)


CALL = {"type": "function", "id": "a1", "function": {"name": "look", "arguments": '{"where": "here"}'}}
RESULT = {"role": "tool", "content": "nothing", "tool_call_id": "a1", "name": "look"}


def test_tool_calls_and_results_survive_a_round_trip():
    calls = {"role": "assistant", "content": None, "tool_calls": [CALL], "reasoning": "Let me see.", "refusal": None}
    tools = [{"type": "function", "function": {"name": "look"}}]
    dialogue = parse_dialogue(
        {"messages": [SYSTEM, USER, calls, RESULT, RESULT, ASSISTANT], "tools": json.dumps(tools)}
    )
    assert dialogue.tool_list == tools
    assert dialogue.as_dicts[2] == {
        "role": "assistant",
        "content": "",
        "reasoning_content": "Let me see.",
        "thinking": "Let me see.",
        "tool_calls": [{**CALL, "function": {"name": "look", "arguments": {"where": "here"}}}],
    }
    assert parse_dialogue(dialogue.as_row) == dialogue
    assert parse_dialogue(json.loads(json.dumps(dialogue.as_row))) == dialogue


@pytest.mark.parametrize(
    ("messages", "told"),
    [
        ([{**USER, "tool_calls": [CALL]}, ASSISTANT], "only the assistant calls"),
        ([USER, {**ASSISTANT, "tool_calls": "look"}], "must be a list"),
        ([USER, {**ASSISTANT, "tool_calls": [{"function": {"arguments": "{}"}}]}], "function with a name"),
        ([USER, {**ASSISTANT, "tool_calls": [{"function": {"name": "f", "arguments": "{"}}]}], "not valid JSON"),
        ([USER, {**ASSISTANT, "tool_calls": [{"function": {"name": "f", "arguments": "[]"}}]}], "not a JSON object"),
        ([USER, {**ASSISTANT, "reasoning": "a", "reasoning_content": "b"}], "not one text"),
        ([{**USER, "reasoning": "a"}, ASSISTANT], "only the assistant can have reasoning"),
        ([USER, {**ASSISTANT, "name": 3}], "`name` that is not text"),
        ([USER, {**ASSISTANT, "train": "no"}], "true or false"),
        ([USER, {**ASSISTANT, "weight": 0.5}], "0 or 1"),
        ([USER, {**ASSISTANT, "weight": 1, "train": False}], "contradict"),
        ([USER, {**ASSISTANT, "train": False}], "no assistant message that is trained"),
        ([USER, {**ASSISTANT, "weight": 0}], "no assistant message that is trained"),
    ],
)
def test_refuses_contradictory_tools_and_flags(messages, told):
    assert told in refusal({"messages": messages})


@pytest.mark.parametrize("tools", ["{", "{}", {"a": 1}, ["look"], 3])
def test_tools_must_be_descriptions(tools):
    assert "tools" in refusal({"messages": [USER, ASSISTANT], "tools": tools})


def test_flags_decide_which_replies_are_trained():
    messages = [USER, {**ASSISTANT, "train": False}, USER, {**ASSISTANT, "weight": 0}, USER, {**ASSISTANT, "weight": 1}]
    dialogue = parse_dialogue({"messages": messages})
    assert [m.trained for m in dialogue.messages if m.role == "assistant"] == [False, False, True]
    assert parse_dialogue(dialogue.as_row) == dialogue


def test_text_parts_are_joined_and_developers_are_the_system():
    parts = [{"type": "text", "text": "two "}, {"type": "text", "text": "parts"}]
    dialogue = parse_dialogue({"messages": [message("developer"), message("user", parts), ASSISTANT]})
    assert [(m.role, m.content) for m in dialogue.messages[:2]] == [("system", "words"), ("user", "two parts")]
