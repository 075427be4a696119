import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lora_chat.dialogues.dialogue import Dialogue, Message, NotADialogue, make_dialogue


def message(role, content="words"):
    return {"role": role, "content": content}


USER, ASSISTANT, SYSTEM = message("user"), message("assistant"), message("system")


def refusal(row):
    with pytest.raises(NotADialogue) as caught:
        make_dialogue(row)
    return str(caught.value)


@pytest.mark.parametrize("turns", [1, 2, 5])
@pytest.mark.parametrize("head", [[], [SYSTEM]])
def test_user_and_assistant_in_turn_are_a_dialogue(head, turns):
    messages = head + [USER, ASSISTANT] * turns
    dialogue = make_dialogue({"messages": messages}, 12)
    assert dialogue.as_dicts == messages
    assert dialogue.line == 12


def test_other_keys_of_the_row_are_not_read():
    row = {"messages": [USER, ASSISTANT], "id": 3, "chat_template_kwargs": {"chat_template": "{{ 7 }}"}}
    assert make_dialogue(row) == Dialogue((Message("user", "words"), Message("assistant", "words")))


def test_content_is_kept_to_the_letter():
    odd = " \n two  spaces\t\r\nand \U0001f642 <|im_end|> \x00 "
    dialogue = make_dialogue({"messages": [message("user", odd), message("assistant", odd)]})
    assert [m.content for m in dialogue.messages] == [odd, odd]


def test_an_empty_system_message_is_allowed():
    assert make_dialogue({"messages": [message("system", ""), USER, ASSISTANT]}).messages[0].content == ""


@pytest.mark.parametrize("row", [None, 3, "text", [], [USER, ASSISTANT], True])
def test_a_row_that_is_no_object_is_refused(row):
    assert "JSON object" in refusal(row)


def test_a_row_without_messages_names_the_keys_it_has():
    told = refusal({"prompt": "a", "completion": "b"})
    assert "messages" in told
    assert "'prompt', 'completion'" in told
    assert "none" in refusal({})


@pytest.mark.parametrize("messages", [None, [], {}, "text", 3, {"role": "user", "content": "x"}])
def test_messages_must_be_a_list_of_some(messages):
    assert "at least one message" in refusal({"messages": messages})


@pytest.mark.parametrize("entry", [None, "text", 3, ["user", "words"]])
def test_a_message_must_be_an_object(entry):
    assert "message 2 is not an object" in refusal({"messages": [USER, entry]})


@pytest.mark.parametrize("role", ["User", "human", "gpt", "tool", "", None, 3, [], {}])
def test_an_unknown_role_names_the_known_ones(role):
    told = refusal({"messages": [message(role), ASSISTANT]})
    assert "message 1" in told
    assert repr(role) in told
    assert "system, user, assistant" in told


@pytest.mark.parametrize("content", [None, 3, ["a"], [{"type": "text", "text": "a"}], {}, True])
def test_content_must_be_text(content):
    told = refusal({"messages": [USER, message("assistant", content)]})
    assert "message 2 (assistant)" in told
    assert "content" in told


def test_content_must_be_there():
    assert "message 1 (user)" in refusal({"messages": [{"role": "user"}, ASSISTANT]})


@pytest.mark.parametrize("content", ["", " ", "\n\t", "\u00a0\u2003"])
@pytest.mark.parametrize(("place", "role"), [(0, "user"), (1, "assistant")])
def test_blank_content_is_refused(content, place, role):
    messages = [dict(USER), dict(ASSISTANT)]
    messages[place]["content"] = content
    assert f"message {place + 1} ({role}) is empty" in refusal({"messages": messages})


@pytest.mark.parametrize("key", ["tool_calls", "name", "weight", "reasoning_content"])
def test_whatever_else_a_message_holds_is_refused_by_name(key):
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
        ([ASSISTANT], "message 1 is from assistant where user"),
        ([ASSISTANT, USER], "message 1 is from assistant where user"),
        ([USER, USER, ASSISTANT], "message 2 is from user where assistant"),
        ([USER, ASSISTANT, ASSISTANT], "message 3 is from assistant where user"),
        ([USER, SYSTEM, ASSISTANT], "message 2 is from system where assistant"),
        ([USER, ASSISTANT, SYSTEM], "message 3 is from system where user"),
        ([SYSTEM, SYSTEM, USER, ASSISTANT], "message 2 is from system where user"),
        ([SYSTEM, ASSISTANT], "message 2 is from assistant where user"),
        ([USER, ASSISTANT, USER], "ends with the user"),
        ([SYSTEM, USER, ASSISTANT, USER], "ends with the user"),
        ([USER], "no assistant message"),
        ([SYSTEM], "no assistant message"),
        ([SYSTEM, USER], "no assistant message"),
    ],
)
def test_the_wrong_order_names_the_message(messages, told):
    assert told in refusal({"messages": messages})


@settings(deadline=None, max_examples=200, derandomize=True)
@given(st.lists(st.sampled_from(["system", "user", "assistant"]), min_size=1, max_size=7))
def test_an_order_is_accepted_exactly_when_it_is_a_dialogue(roles):
    turns = roles[1:] if roles[0] == "system" else roles
    good = bool(turns) and turns == ["user", "assistant"] * (len(turns) // 2)
    row = {"messages": [message(role) for role in roles]}
    if good:
        assert [m.role for m in make_dialogue(row).messages] == roles
    else:
        refusal(row)
