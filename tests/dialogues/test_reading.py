import json
import re

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from lora_chat.dialogues.dialogue import Dialogue, Message
from lora_chat.dialogues.reading import read_dialogues, split_dialogues
from lora_chat.errors import DataError


def row(question="q", answer="a"):
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


GOOD = json.dumps(row()).encode()
ODD_LINES = {
    "no JSON": b"just words",
    "half an object": b'{"messages": [',
    "two objects": GOOD + GOOD,
    "single quotes": b"{'messages': []}",
    "a number": b"3",
    "a list": b"[" + GOOD + b"]",
    "wrong key": b'{"conversations": []}',
    "wrong role": b'{"messages": [{"role": "human", "content": "q"}, {"role": "assistant", "content": "a"}]}',
    "wrong order": b'{"messages": [{"role": "assistant", "content": "a"}]}',
    "no assistant": b'{"messages": [{"role": "user", "content": "q"}]}',
    "repeated key": GOOD[:-1] + b', "messages": []}',
    "repeated key inside": GOOD.replace(b'"role": "user"', b'"role": "user", "role": "user"'),
    "NaN": GOOD[:-1] + b', "score": NaN}',
    "Infinity": GOOD[:-1] + b', "score": -Infinity}',
    "too many digits": GOOD[:-1] + b', "id": ' + b"9" * 5000 + b"}",
    "nested too deep": b"[" * 100_000,
    "nested too deep beside messages": GOOD[:-1] + b', "x": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "lone surrogate": GOOD.replace(b'"q"', b'"\\ud83d"'),
    "half UTF-8": GOOD.replace(b'"q"', b'"\xc3"'),
    "Latin-1": GOOD.replace(b'"q"', b'"caf\xe9"'),
    "UTF-16": json.dumps(row()).encode("utf-16-le"),
    "a second byte order mark": b"\xef\xbb\xbf" + GOOD,
    "a NUL": b"\x00",
    "a control character in a string": GOOD.replace(b'"q"', b'"\x0b"'),
}


@pytest.fixture
def file(tmp_path):
    def write(content):
        path = tmp_path / "chats.jsonl"
        path.write_bytes(content)
        return path

    return write


def refusal(path, **options):
    with pytest.raises(DataError) as caught:
        read_dialogues(path, **options)
    assert caught.value.exit_code == 3
    return str(caught.value)


def test_dialogues_carry_their_lines_and_every_line_is_counted(file):
    path = file(GOOD + b"\n\n" + json.dumps(row("two", "zwei")).encode() + b"\n  \t\n")
    dialogues, report = read_dialogues(path)
    assert [d.line for d in dialogues] == [1, 3]
    assert dialogues[1].as_dicts == row("two", "zwei")["messages"]
    assert (report.lines, report.accepted, report.blank, report.refused) == (4, 2, 2, 0)
    assert report.files == ((str(path), "messages"),)


@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
@pytest.mark.parametrize("last", [True, False])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_line_ends_and_byte_order_mark_make_no_difference(file, end, last, mark):
    dialogues, report = read_dialogues(file(mark + end.join([GOOD, GOOD]) + (end if last else b"")))
    assert [d.line for d in dialogues] == [1, 2]
    assert [d.as_dicts for d in dialogues] == [row()["messages"]] * 2
    assert (report.lines, report.accepted) == (2, 2)


def test_only_a_line_feed_ends_a_line(file):
    odd = "a\u2028b\u2029c\x85d\x0ce"
    path = file(json.dumps(row(answer=odd), ensure_ascii=False).replace("\\f", "\\u000c").encode() + b"\n" + GOOD)
    dialogues, _ = read_dialogues(path)
    assert dialogues[0].messages[1].content == odd
    assert dialogues[1].line == 2


@pytest.mark.parametrize("odd", ODD_LINES)
def test_an_odd_line_is_refused_with_file_and_line(file, odd):
    path = file(GOOD + b"\n\n" + ODD_LINES[odd] + b"\n" + GOOD + b"\n")
    message = refusal(path)
    assert re.findall(rf"{re.escape(str(path))}:(\d+): \S", message) == ["3"]
    assert "1 line of" in message
    assert len(message) < 1000


@pytest.mark.parametrize(
    ("odd", "told"),
    [
        ("half an object", "column"),
        ("repeated key", "'messages' twice"),
        ("repeated key inside", "'role' twice"),
        ("NaN", "NaN"),
        ("nested too deep", "nested too deeply"),
        ("lone surrogate", "surrogate"),
        ("Latin-1", "UTF-8"),
        ("half UTF-8", "UTF-8"),
        ("wrong role", "'human'"),
    ],
)
def test_a_refusal_says_what_is_wrong(file, odd, told):
    assert told in refusal(file(GOOD + b"\n" + ODD_LINES[odd]))


def test_the_byte_of_broken_utf8_is_counted_from_one(file):
    assert "byte 3 of" in refusal(file(b"ab\xff"))


def test_five_refusals_are_shown_and_the_rest_counted(file):
    path = file(b"".join([b"x\n", GOOD + b"\n"] * 8))
    message = refusal(path)
    assert re.findall(r"chats\.jsonl:(\d+):", message) == ["1", "3", "5", "7", "9"]
    assert "8 lines" in message
    assert "... and 3 more" in message
    assert "--set data.skip_bad=" in message


def test_exactly_five_refusals_have_no_rest(file):
    message = refusal(file(b"x\n" * 5))
    assert "more" not in message


def test_so_many_faulty_lines_as_allowed_are_left_out(file):
    path = file(b"x\n" + GOOD + b"\ny\n")
    dialogues, report = read_dialogues(path, skip_bad=2)
    assert [d.line for d in dialogues] == [2]
    assert (report.lines, report.accepted, report.blank, report.refused) == (3, 1, 0, 2)
    assert [reason.split(": ")[0] for reason in report.reasons] == [f"{path}:1", f"{path}:3"]
    assert "allows 1" in refusal(path, skip_bad=1)


def test_a_report_shows_five_reasons_at_most(file):
    _, report = read_dialogues(file(b"x\n" * 9 + GOOD), skip_bad=9)
    assert report.refused == 9
    assert len(report.reasons) == 5


@pytest.mark.parametrize("content", [b"", b"\n", b"\n \n\t\r\n", b"\xef\xbb\xbf", b"\xef\xbb\xbf\n"])
def test_a_file_without_dialogues_is_refused(file, content):
    path = file(content)
    assert f"{path} holds no dialogue" in refusal(path)


def test_a_file_of_nothing_but_allowed_faults_is_refused(file):
    assert "no dialogue" in refusal(file(b"x\n"), skip_bad=1)


def test_a_missing_file_is_refused(tmp_path):
    assert f"There is no file {tmp_path / 'none.jsonl'}" in refusal(tmp_path / "none.jsonl")
    assert str(tmp_path) in refusal(tmp_path / "no" / "folder.jsonl")


def test_an_empty_folder_and_a_path_through_a_file_are_refused(tmp_path, file):
    assert "There is no file in" in refusal(tmp_path)
    assert "chats.jsonl" in refusal(file(GOOD) / "inside.jsonl")


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text()
    | st.sampled_from(["user", "assistant", "system", "\ud800"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["messages", "role", "content"]) | st.text(max_size=3), inner, max_size=3)
    ),
    max_leaves=8,
)
MESSAGES = st.lists(
    st.fixed_dictionaries(
        {"role": st.sampled_from(["user", "assistant", "system", "x"]), "content": st.text() | VALUES}
    ),
    max_size=4,
)
LINES = st.one_of(
    st.just((True, GOOD)),
    st.sampled_from([b"", b" ", b"\t\r", "\u2003".encode()]).map(lambda line: (False, line)),
    st.binary(max_size=30).map(lambda line: (False, line.replace(b"\n", b""))),
    st.text(max_size=20).map(lambda line: (False, line.encode().replace(b"\n", b""))),
    VALUES.map(lambda value: (None, json.dumps(value).encode())),
    MESSAGES.map(lambda value: (None, json.dumps({"messages": value}).encode())),
    st.integers(0, len(GOOD) - 1).map(lambda cut: (False, GOOD[:cut])),
    st.tuples(st.integers(0, len(GOOD) - 1), st.binary(min_size=1, max_size=2)).map(
        lambda t: (None, (GOOD[: t[0]] + t[1] + GOOD[t[0] + 1 :]).replace(b"\n", b""))
    ),
)


@settings(deadline=None, max_examples=400, derandomize=True)
@given(
    lines=st.lists(LINES, max_size=8),
    end=st.sampled_from([b"\n", b"\r\n"]),
    last=st.booleans(),
    mark=st.sampled_from([b"", b"\xef\xbb\xbf"]),
)
def test_every_line_is_accounted_for_whatever_the_bytes(tmp_path_factory, lines, end, last, mark):
    content = mark + end.join(line for _, line in lines) + (end if last else b"")
    assume(not content.removeprefix(mark).lstrip().startswith(b"["))  # one list has a test of its own
    path = tmp_path_factory.getbasetemp() / "any.jsonl"
    path.write_bytes(content)
    there = content.count(b"\n") + (not content.endswith(b"\n") and content != b"")
    try:
        dialogues, report = read_dialogues(path, skip_bad=len(lines) + 1)
    except DataError as error:
        assert "holds no dialogue" in str(error)
        assert not any(good for good, _ in lines)
        return
    assert report.lines == there
    assert report.accepted + report.blank + report.refused == there
    assert report.accepted == len(dialogues)
    taken = [d.line for d in dialogues]
    assert taken == sorted(set(taken))
    assert set(taken) >= {number for number, (good, _) in enumerate(lines, 1) if good}
    assert not set(taken) & {number for number, (good, _) in enumerate(lines, 1) if good is False}


def dialogue(text):
    return Dialogue((Message("user", text), Message("assistant", "a")))


MANY = [dialogue(str(i)) for i in range(40)]


def test_a_split_depends_on_the_seed_alone():
    assert split_dialogues(MANY, 0.25, 3) == split_dialogues(list(MANY), 0.25, 3)
    assert len({tuple(split_dialogues(MANY, 0.25, seed)[1]) for seed in range(5)}) == 5


def test_a_split_holds_out_the_share_asked_for():
    train, held = split_dialogues(MANY, 0.25, 0)
    assert (len(train), len(held)) == (30, 10)
    assert split_dialogues(MANY, 0.001, 0)[1] != []
    assert split_dialogues(MANY, 0.999, 0)[0] != []


@settings(deadline=None, max_examples=300, derandomize=True)
@given(
    texts=st.lists(st.sampled_from("abcdefgh"), max_size=30),
    share=st.floats(0, 1, exclude_min=True, exclude_max=True),
    seed=st.integers(),
)
def test_a_split_is_a_partition_that_keeps_equals_together(texts, share, seed):
    dialogues = [Dialogue(dialogue(text).messages, line) for line, text in enumerate(texts, 1)]
    if len(set(texts)) < 2:
        with pytest.raises(DataError, match="At least 2 different dialogues"):
            split_dialogues(dialogues, share, seed)
        return
    train, held = split_dialogues(dialogues, share, seed)
    assert train
    assert held
    assert sorted(train + held, key=lambda d: d.line) == dialogues
    assert [d.line for d in train] == sorted(d.line for d in train)
    assert [d.line for d in held] == sorted(d.line for d in held)
    assert not {d.messages for d in train} & {d.messages for d in held}


def test_many_copies_of_one_dialogue_are_not_held_out_for_a_tenth():
    dialogues = [dialogue("copy")] * 90 + MANY[:10]
    assert all(len(split_dialogues(dialogues, 0.1, seed)[1]) <= 20 for seed in range(10))
