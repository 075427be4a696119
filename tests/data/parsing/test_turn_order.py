import pytest

from lora_chat.data.dialogue import InvalidDialogueError
from lora_chat.data.parsing.messages import parse_dialogue
from lora_chat.data.parsing.row_notes import RowNotes

CALL = {"type": "function", "function": {"name": "look", "arguments": {}}}


def user(text="q", **more):
    return {"role": "user", "content": text, **more}


def system(text="s"):
    return {"role": "system", "content": text}


def reply(text="a", **more):
    return {"role": "assistant", "content": text, **more}


def result(text="r"):
    return {"role": "tool", "content": text}


def read(messages, turn_order="refuse", **row):
    notes = RowNotes()
    dialogue = parse_dialogue({"messages": messages, **row}, 1, notes, turn_order)
    return [(m.role, m.content) for m in dialogue.messages], notes.counts


@pytest.mark.parametrize(
    ("messages", "kept"),
    [
        ([user(), reply(), user("thanks")], 2),
        ([user(), reply(), user("thanks"), user("bye"), system()], 2),
        ([user(), reply("", tool_calls=[CALL]), result()], 2),
        ([user(), reply("", tool_calls=[CALL]), result(), result()], 2),
    ],
)
def test_cuts_off_and_counts_an_open_end(messages, kept):
    found, counts = read(messages)
    assert found == [(m["role"], m["content"]) for m in messages[:kept]]
    assert counts == {"open_end": 1}


def test_keeps_other_orders_without_a_note():
    messages = [system(), reply("hi"), user(), user("more"), reply("wait"), reply("done"), system("new"), reply("end")]
    found, counts = read(messages)
    assert found == [(m["role"], m["content"]) for m in messages]
    assert counts == {}


def test_the_last_reply_is_the_last_one_before_an_open_end():
    dialogue = parse_dialogue({"messages": [user(), reply("a"), user(), reply("b"), user()], "turns": "last"})
    assert [m.trained for m in dialogue.messages if m.role == "assistant"] == [False, True]


def test_join_makes_one_message_of_neighbours_of_one_role():
    messages = [system("x"), system("y"), user("a"), user("b"), user("c"), reply("d"), reply("e"), user("f")]
    found, counts = read(messages, "join")
    assert found == [("system", "x\n\ny"), ("user", "a\n\nb\n\nc"), ("assistant", "d\n\ne")]
    assert counts == {"joined_messages": 4, "open_end": 1}


def test_join_adds_calls_to_the_text_before_them_and_keeps_results_apart():
    calls = [reply("", tool_calls=[CALL]), reply("", tool_calls=[CALL])]
    messages = [user(), reply("I look.", reasoning="hm"), *calls, result("r1"), result("r2"), reply("Blue.")]
    dialogue = parse_dialogue({"messages": messages}, turn_order="join")
    assert [m.role for m in dialogue.messages] == ["user", "assistant", "tool", "tool", "assistant"]
    joined = dialogue.messages[1]
    assert (joined.content, joined.reasoning, len(joined.tool_calls)) == ("I look.", "hm", 2)
    assert parse_dialogue(dialogue.as_row) == dialogue


@pytest.mark.parametrize(
    ("first", "second", "reason"),
    [
        (reply("a"), reply("b", train=False), "one of them is trained"),
        (user("a", name="Ana"), user("b", name="Bo"), "different names"),
        (reply("a"), reply("b", reasoning="hm"), "would move before the text of the first"),
        (reply("", tool_calls=[CALL]), reply("b"), "would move before the calls of the first"),
    ],
)
def test_join_refuses_what_would_change_the_meaning(first, second, reason):
    with pytest.raises(InvalidDialogueError, match=reason):
        read([user(), reply(), first, second, reply("end", train=False)], "join")


def test_refuses_a_dialogue_whose_only_replies_are_not_trained():
    with pytest.raises(InvalidDialogueError, match="no assistant message that is trained"):
        read([user(), reply(train=False), user()])
