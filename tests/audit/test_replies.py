import pytest

from lora_chat.audit.checks.replies import ReplyCounter, is_empty, is_repetitive


@pytest.mark.parametrize(
    "reply",
    [
        "",
        " \n",
        "...",
        "…",
        "N/A",
        "TODO",
        "null",
        "None",
        "[response]",
        "<your answer here>",
        "-",
        "Lorem ipsum dolor sit amet, consectetur adipiscing",
    ],
)
def test_placeholders_are_empty_replies(reply):
    assert is_empty(reply)


@pytest.mark.parametrize(
    "reply",
    [
        "None.",
        "none",
        "42",
        "Yes",
        "ok",
        "I don't know.",
        "#### 72",
        "answer",
        "好",
        "No answer was given by the witness.",
        "x = []",
        "[1, 2]",
    ],
)
def test_short_answers_are_not_empty_replies(reply):
    assert not is_empty(reply)


@pytest.mark.parametrize(
    "reply", ["I am sorry. " * 30, "the same line again\n" * 20, "ha ha ha ha " * 40, "我不知道该说什么。" * 20]
)
def test_finds_repetitive_replies(reply):
    assert is_repetitive(reply)


@pytest.mark.parametrize(
    "reply",
    [
        "yes " * 5,
        "\n".join(f"{i} times {j} is {i * j}." for i in range(9) for j in range(9)),
        "| a | b |\n|---|---|\n" + "\n".join(f"| {i} | {i * 7} |" for i in range(30)),
        " ".join(f"word{i}" for i in range(300)),
    ],
)
def test_lists_and_tables_are_not_repetitive(reply):
    assert not is_repetitive(reply)


def count(replies):
    counter = ReplyCounter()
    for number, reply in enumerate(replies, 1):
        counter.add(reply, ("a.jsonl", number, 2))
    return counter.find_repeated()


def test_reports_repeated_reply_with_its_first_location():
    (found,) = count(
        [f"A quite particular answer {n}" for n in range(900)] + ["I cannot help with that request."] * 100
    )
    assert found.location == ("a.jsonl", 901, 2)
    assert found.text == "I cannot help with that request."
    assert 90 <= found.occurrences <= 100


def test_ignores_short_and_rare_repetitions():
    assert count(["Yes."] * 500 + ["OK, thanks!"] * 500) == []
    assert count(["I cannot help with that request."] * 19) == []
    assert (
        count([f"Reply number {n} of all replies" for n in range(5000)] + ["I cannot help with that request."] * 200)
        == []
    )
