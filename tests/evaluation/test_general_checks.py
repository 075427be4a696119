"""Each check of a general reply accepts right replies and refuses wrong ones, in bounded time."""

import time

import pytest

from lora_chat.evaluation.general.checks import CHECKS, MAX_REPLY_CHARACTERS
from lora_chat.evaluation.general.reply_texts import has_loop, split_units

EN, ZH = {"language": "en"}, {"language": "zh"}
PARIS, BEIJING = {"accept": ("Paris",)}, {"accept": ("北京",)}
CASES = [
    ("contains", PARIS, ["Paris", "It is **PARIS**.", "the city of Paris!"], ["", "Parisian food", "London"]),
    ("contains", BEIJING, ["中国的首都是北京。", "北京"], ["", "东京", "北 京"]),
    ("contains", {"accept": ("H2O", "7")}, ["H₂O", "h2o is water", "有7天", "７"], ["H2O2", "17", "7th", "H20"]),
    ("contains", {"accept": ("0",)}, ["0 °C", "At 0.", "(0)", "10-0 or 0"], ["18.0", "-0.5", "is -0", "1,0", "0,5"]),
    ("contains_all", {"texts": ("cat", "window")}, ["A cat at the Window."], ["A cat.", "Cats and windows"]),
    ("equals", {"accept": ("yes",)}, ["Yes.", " yes", '"YES!"'], ["Yes, it is.", "no", "", "yesyes"]),
    ("equals", {"accept": ("小船过了湖。",)}, ["小船过了湖", "“小船过了湖。”"], ["小船过了大湖。", ""]),
    ("equals", {"accept": ("!!",)}, ["!!"], ["", "?"]),
    (
        "number",
        {"value": 19},
        ["19", "12 + 7 = 19", "The answer is 19.", "12+7=19, easy", "19.0"],
        ["", "12 + 7", "190"],
    ),
    (
        "number",
        {"value": 5},
        ["2 加 3 等于 5。", "2加3等于5个苹果。", "５", "You have 5 apples."],
        ["5 - 1 = 4", "five", "15", "5 of 6"],
    ),
    ("number", {"value": 1200}, ["1,200", "= 1200 pens"], ["1,20", "12,00", "0.1200"]),
    ("number", {"value": -3}, ["-3", "4 - 7 = -3"], ["3", "4 - 3"]),
    ("words", {"lowest": 3, "highest": 3}, ["cold white snow", "Cold, white snow."], ["snow", "it is very cold", ""]),
    ("words", {"lowest": 2, "highest": 2}, ["绿色", "绿色。"], ["绿", "草是绿色的"]),
    ("lines", {"count": 2}, ["cat\ndog", "1. cat\n\n2. dog\n"], ["cat", "cat\ndog\ncow", ""]),
    ("parts", {"separator": ",", "count": 3}, ["red, green, blue", "Red,green,dark blue."], ["red green blue", "a, b"]),
    ("parts", {"separator": "、", "count": 3}, ["红、绿、蓝"], ["红，绿，蓝", "红、绿、蓝\n这是颜色"]),
    (
        "json_keys",
        {"keys": ("a", "b")},
        ['{"a": 1, "b": 2}', '```json\n{"b": [], "a": ""}\n```'],
        ['{"a": 1}', "[1]", ""],
    ),
    ("json_keys", {"keys": ("a",)}, ['{"a": null}'], ['{"a": NaN}', '{"a": 1} ok', '{"a": 1, "a": 2}', "[" * 3000]),
    ("upper_case", {}, ["GOOD MORNING", "A 1!"], ["Good", "123", ""]),
    ("lower_case", {}, ["spring, of course"], ["Spring", "123", ""]),
    ("begins_with", {"text": "Sure"}, ["Sure, a table", '"sure"', "**Sure!**"], ["Surely not", "I am sure", ""]),
    ("begins_with", {"text": "当然"}, ["当然，桌子", "“当然”"], ["不当然"]),
    ("ends_with", {"text": "END"}, ["Hello END", "Hello. END.", "END"], ["Hello end", "END of all", ""]),
    ("ends_with", {"text": "完毕"}, ["你好，完毕。"], ["完毕了吗？"]),
    (
        "admits_ignorance",
        EN,
        ["I don’t know.", "I'm not aware of it.", "It does not exist."],
        ["He was born in 1912.", ""],
    ),
    ("admits_ignorance", ZH, ["我不知道。", "很抱歉，没有找到这本书。"], ["作者是王小明。", ""]),
    (
        "chat",
        EN | {"words": 6},
        ["Hello! How are you?"],
        ["", "你好！", "one two three four five six seven", "no no no no no"],
    ),
    ("chat", ZH | {"words": 8}, ["你好！今天很好。"], ["Hello", "好的好的好的", "", "一二三四五六七八九"]),
]


@pytest.mark.parametrize(("name", "arguments", "right", "wrong"), CASES)
def test_check_accepts_right_replies_and_refuses_wrong_ones(name, arguments, right, wrong):
    check = CHECKS[name]
    rows = {key: list(value) if isinstance(value, tuple) else value for key, value in arguments.items()}
    assert check.read_arguments(rows) == arguments
    assert [reply for reply in right if not check.passes(reply, arguments)] == []
    assert [reply for reply in wrong if check.passes(reply, arguments)] == []


def test_every_check_has_cases():
    assert {name for name, *_ in CASES} == set(CHECKS)


@pytest.mark.parametrize(
    ("name", "row"),
    [
        ("contains", {}),
        ("contains", {"accept": []}),
        ("contains", {"accept": "Paris"}),
        ("contains", {"accept": [" "]}),
        ("contains", {"accept": ["x"] * 101}),
        ("contains", {"accept": ["x"], "more": 1}),
        ("number", {"value": "5"}),
        ("number", {"value": True}),
        ("number", {"value": 10**16}),
        ("words", {"lowest": 1}),
        ("words", {"lowest": 1, "highest": True}),
        ("lines", {"count": 0}),
        ("chat", {"language": "xx", "words": 3}),
        ("ends_with", {"text": "x" * 301}),
    ],
)
def test_wrong_arguments_are_refused(name, row):
    with pytest.raises(ValueError, match=f"the check `{name}`"):
        CHECKS[name].read_arguments(row)


@pytest.mark.parametrize(
    "text", ["a" * 10**6, "a " * 10**5, "1" * 10**6, "1,000" * 10**5, "-" * 10**6, "[{" * 10**5, "a-" * 10**5]
)
def test_checks_read_a_bounded_part_of_a_reply(text):
    started = time.process_time()
    for name, arguments, _, _ in CASES:
        CHECKS[name].passes(text, arguments)
    assert time.process_time() - started < 2
    assert len(text) > MAX_REPLY_CHARACTERS


@pytest.mark.parametrize(
    ("text", "loops"),
    [
        ("ha ha ha", False),
        ("very very very very very good", True),
        ("I am here. I am here. I am here.", True),
        ("a b c d " * 2, False),
        ("我很好我很好我很好", True),
        ("", False),
    ],
)
def test_loops_are_found(text, loops):
    assert has_loop(text) is loops


def test_words_of_both_scripts_are_counted():
    assert split_units("It's a well-known 苹果, 3 times.") == ["it's", "a", "well-known", "苹", "果", "3", "times"]
