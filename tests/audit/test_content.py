import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lora_chat.audit.checks.abusive_language import find_abuse
from lora_chat.audit.checks.markup import MarkupDetector, find_template_code

SWEAR = "fu" + "ck"


def tokens(text, own=("<|im_start|>", "</s>")):
    return [(m.detail, text[m.start : m.end]) for m in MarkupDetector(own).find_tokens(text)]


def test_distinguishes_control_tokens_of_the_base_from_other_markup():
    assert tokens("a <|im_start|>user b </s>") == [
        ("control token of this base", "<|im_start|>"),
        ("control token of this base", "</s>"),
    ]
    for text in ("<|eot_id|>", "[INST]", "<start_of_turn>", "<｜User｜>", "<<SYS>>", "### Response:"):
        assert tokens(f"see\n{text} here") == [("chat markup", text)]


def test_accepts_missing_and_blank_control_tokens():
    assert tokens("a b", ()) == tokens("a b", ("", " ")) == []


@pytest.mark.parametrize(
    "text", ["a < b | c > d", "48/2=<<48/2=24>>24", "#### 72", "### Results", "x <| y", "<s>old</s> price", "[INSTALL]"]
)
def test_similar_characters_are_not_markup(text):
    assert tokens(text, ("<|im_start|>",)) == []


@pytest.mark.parametrize(
    "text", ["Dear {{ name }},", "{% if x %}a{% endif %}", "{{ user.name | title }}", "{{messages[0]['content']}}"]
)
def test_finds_jinja_as_template_code(text):
    assert list(find_template_code(text))


@pytest.mark.parametrize(
    "text",
    [
        r"\frac{{a}}{{b}}",
        "style={{color: 'red'}}",
        '{"a": {"b": {}}}',
        "f'{{literal}}'"[2:3],
        "{{1, 2}, {3}}",
        "100 {%}",
    ],
)
def test_other_braces_are_not_template_code(text):
    assert not list(find_template_code(text))


@pytest.mark.parametrize(
    "text",
    [
        f"{SWEAR} you",
        f"What the {SWEAR.upper()}!",
        SWEAR[0] + "*" + SWEAR[2:] + "ing idiot",
        "you a$$hole",
        "Du Arschloch!",
        "go ki" + "ll yourself",
        "你这个傻逼",
        "son of a bi" + "tch",
        "İ " + SWEAR,
    ],
)
def test_finds_abuse_in_several_languages_and_disguises(text):
    assert list(find_abuse(text))


@pytest.mark.parametrize(
    "text",
    [
        "Scunthorpe and Sussex",
        "the die is cast",
        "a cocktail with grapefruit",
        "Dick van Dyke",
        "class assessment, bass, pass",
        "2*3*4 = 24 and a*b*c",
        "Sie die Wahl haben",
        "retardant foam",
        "user@host, c3po, b4 noon",
        "I hope you die Rechnung haben"[:10],
        "他妈妈去买菜了",
        "the chinks in the armour",
        "s3 bucket, h264, mp3",
    ],
)
def test_harmless_words_are_not_abuse(text):
    assert not list(find_abuse(text))


@settings(deadline=None, max_examples=80, derandomize=True)
@given(st.text(max_size=60) | st.text(alphabet="<|>[]{}% sfuck*@im_start", max_size=60))
def test_matches_lie_inside_any_text(text):
    for match in (*find_abuse(text), *MarkupDetector(["<|im_start|>"]).find_tokens(text), *find_template_code(text)):
        assert 0 <= match.start < match.end <= len(text)
