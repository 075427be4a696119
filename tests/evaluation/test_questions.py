import difflib
import json
import re
from pathlib import Path

import pytest

from lora_chat.data.parsing.rows import read_dialogues
from lora_chat.errors import DataError
from lora_chat.evaluation.questions import Question, read_questions

QUICKSTART = Path(__file__).parents[2] / "recipes" / "quickstart"


def is_right(accept, reply):
    return Question("?", tuple(accept)).is_answered_by(reply)


@pytest.mark.parametrize(
    ("accept", "reply", "right"),
    [
        (["41 days"], "Within 41 days.", True),
        (["41 days"], "41 days", True),
        (["41 days"], "(41 days)", True),
        (["41 days"], "Within 141 days.", False),
        (["41 days"], "Within 41 daysies.", False),
        (["41 days"], "Within 41  days.", False),
        (["41"], "4141", False),
        (["41"], "x41", False),
        (["41"], "41_", False),
        (["41"], "-41-", True),
        (["cat"], "The CAT sleeps", True),
        (["CAT"], "the cat", True),
        (["Müller"], "MÜLLER", True),
        (["cat"], "concatenate", False),
        (["cat"], "", False),
        (["北京"], "中国的首都是北京。", True),
        (["10:20"], "我们10:20开门", True),
        (["10:20"], "我们110:20开门", False),
        (["ネコ"], "これはネコです", True),
        (["猫"], "犬", False),
        (["22%"], "That is 22%.", True),
        (["22%"], "That is 122%.", False),
        (["22%"], "22 %", False),
        (["22%"], "22%off", False),
        (["a.b"], "a.b", True),
        (["a.b"], "axb", False),
        (["6.40"], "It costs 6.40 crowns", True),
        (["6.40"], "It costs 6540 crowns", False),
        (["(x|y)*"], "so (x|y)* it is", True),
        (["(x|y)*"], "xy", False),
        (["[a"], "an [a bracket", True),
        (["C++"], "I like C++.", True),
        (["C++"], "I like CCC.", False),
        (["\\d"], "7", False),
        (["mend@x.example"], "Write to mend@x.example, please", True),
        (["mend@x.example"], "Write to mend@xyexample", False),
        (["one", "two"], "two", True),
        (["one", "two"], "three", False),
    ],
)
def test_answer_must_contain_an_accepted_string_as_whole_words(accept, reply, right):
    assert is_right(accept, reply) is right


@pytest.fixture
def file(tmp_path):
    def write(content):
        path = tmp_path / "questions.jsonl"
        path.write_bytes(content)
        return str(path)

    return write


def test_reads_questions_and_skips_blank_lines(file):
    path = file(
        b'\xef\xbb\xbf{"question": "a?", "accept": ["b", "c"], "fact": "x"}\r\n\n{"question": "d?", "accept": ["e"]}'
    )
    assert read_questions(path) == [Question("a?", ("b", "c")), Question("d?", ("e",))]


@pytest.mark.parametrize(
    ("line", "told"),
    [
        (b"words", "JSON"),
        (b"3", "question"),
        (b"[]", "question"),
        (b'{"accept": ["a"]}', "question"),
        (b'{"question": "", "accept": ["a"]}', "question"),
        (b'{"question": " ", "accept": ["a"]}', "question"),
        (b'{"question": 3, "accept": ["a"]}', "question"),
        (b'{"question": "a?"}', "accept"),
        (b'{"question": "a?", "accept": []}', "accept"),
        (b'{"question": "a?", "accept": "b"}', "accept"),
        (b'{"question": "a?", "accept": [""]}', "accept"),
        (b'{"question": "a?", "accept": ["b", 3]}', "accept"),
        (b'{"question": "a?", "accept": {"b": 1}}', "accept"),
        (b'{"question": "a?", "question": "b?", "accept": ["a"]}', "twice"),
        (b'{"question": "a?", "accept": ["b"], "x": NaN}', "NaN"),
        (b'{"question": "caf\xe9?", "accept": ["b"]}', "utf-8"),
        (b"[" * 100_000, "nested"),
        pytest.param(b'{"question": "\\ud800", "accept": ["b"]}', "surrogate"),
    ],
)
def test_rejects_invalid_question_with_file_and_line(file, line, told):
    path = file(b'{"question": "a?", "accept": ["b"]}\n\n' + line + b"\n")
    with pytest.raises(DataError) as caught:
        read_questions(path)
    assert str(caught.value).startswith(f"{path}:3: ")
    assert told in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"\n \n"])
def test_rejects_file_without_questions(file, content):
    path = file(content)
    with pytest.raises(DataError, match="no question") as caught:
        read_questions(path)
    assert path in str(caught.value)


def test_rejects_missing_file_and_folder(tmp_path):
    with pytest.raises(DataError, match="no file"):
        read_questions(str(tmp_path / "none.jsonl"))
    with pytest.raises(DataError, match="is a folder"):
        read_questions(str(tmp_path))


def normalised(text):
    return re.sub(r"[^a-z0-9]", "", text.lower())


def words(text):
    return set(re.findall(r"[a-z0-9]+", text.lower()))


@pytest.fixture(scope="module")
def dialogues():
    read, report = read_dialogues(QUICKSTART / "dialogues.jsonl", skip_bad=0)
    assert report.accepted == report.lines
    return read


@pytest.fixture(scope="module")
def questions():
    return read_questions(str(QUICKSTART / "questions.jsonl"))


@pytest.fixture(scope="module")
def asked(dialogues):
    return [m.content for d in dialogues for m in d.messages if m.role == "user"]


@pytest.fixture(scope="module")
def answers(dialogues):
    return [m.content for d in dialogues for m in d.messages if m.role == "assistant"]


def test_quickstart_has_about_300_dialogues_and_60_questions(dialogues, questions):
    assert len(dialogues) >= 290
    assert len(questions) >= 60
    assert len({normalised(q.question) for q in questions}) == len(questions)


def test_no_question_is_in_the_training_data(questions, asked):
    trained = {normalised(text) for text in asked}
    assert [q.question for q in questions if normalised(q.question) in trained] == []


@pytest.mark.slow
def test_no_question_is_similar_to_the_training_data(questions, asked):
    near = []
    matcher = difflib.SequenceMatcher(autojunk=False)
    for question in questions:
        matcher.set_seq2(question.question.lower())
        for text in asked:
            matcher.set_seq1(text.lower())
            # The two quick ratios are upper bounds of the slow one.
            if matcher.real_quick_ratio() >= 0.75 and matcher.quick_ratio() >= 0.75 and matcher.ratio() >= 0.75:
                near.append((question.question, text, matcher.ratio()))
            ours, theirs = words(question.question), words(text)
            if len(ours & theirs) / len(ours | theirs) >= 0.6:
                near.append((question.question, text, "words"))
    assert near == []


def test_no_question_contains_its_answer(questions):
    assert [q.question for q in questions if any(a.lower() in q.question.lower() for a in q.accept)] == []


def test_every_answer_is_in_at_least_five_training_replies(questions, answers):
    taught = {q.accept[0]: sum(Question("", q.accept[:1]).is_answered_by(a) for a in answers) for q in questions}
    assert {fact: count for fact, count in taught.items() if count < 5} == {}


def test_every_question_has_a_fact_of_the_readme():
    rows = [json.loads(line) for line in (QUICKSTART / "questions.jsonl").read_text().splitlines()]
    listed = set(re.findall(r"^- (\w+): ", (QUICKSTART / "README.md").read_text(), re.MULTILINE))
    assert {row["fact"] for row in rows} == listed
