"""Text has the contrast of WCAG AA on its background, in the light and the dark colours of the page."""

import re
from importlib.resources import files

import pytest

STYLE = files("lora_chat.serving").joinpath("static", "style.css").read_text(encoding="utf-8")
TEXT_PAIRS = [
    ("text", "page"), ("text", "card"), ("text", "soft"), ("text", "accent-soft"), ("muted", "page"), ("muted", "card"),
    ("muted", "soft"), ("muted", "bad-soft"), ("accent", "card"), ("accent", "page"), ("on-accent", "accent"),
    ("on-bad", "bad"), ("good", "good-soft"), ("bad", "bad-soft"), ("warn", "warn-soft"), ("bad", "card"),
    ("bad", "page"), ("good", "card"), ("warn", "card"), ("text", "bad-soft"), ("added", "added-soft"),
    ("removed", "removed-soft"),
    ("on-token", "likely"), ("on-token", "unsure"), ("on-token", "guess"),
]  # fmt: skip
EDGE_PAIRS = [("edge", "page"), ("edge", "card"), ("accent", "card"), ("accent", "page"), ("accent", "accent-soft")]


def read_colours(theme: str) -> dict[str, str]:
    light, dark = re.findall(r":root \{(.*?)\}", STYLE, re.DOTALL)[:2]
    return dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", light if theme == "light" else dark))


def luminance(colour: str) -> float:
    channels = (int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5))
    red, green, blue = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(first: str, second: str) -> float:
    low, high = sorted((luminance(first), luminance(second)))
    return (high + 0.05) / (low + 0.05)


def test_contrast_is_computed_as_wcag_does():
    assert contrast("#ffffff", "#000000") == pytest.approx(21)
    assert contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.01)


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_text_has_contrast(theme):
    colours = read_colours(theme)
    weak = {pair: contrast(colours[pair[0]], colours[pair[1]]) for pair in TEXT_PAIRS}
    assert {pair: round(value, 2) for pair, value in weak.items() if value < 4.5} == {}


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_edges_of_controls_have_contrast(theme):
    colours = read_colours(theme)
    weak = {pair: contrast(colours[pair[0]], colours[pair[1]]) for pair in EDGE_PAIRS}
    assert {pair: round(value, 2) for pair, value in weak.items() if value < 3} == {}


def test_both_themes_define_the_same_colours():
    assert read_colours("light").keys() == read_colours("dark").keys()


def test_every_colour_in_use_is_defined():
    for name in ("style.css", "chat.css", "compare.css"):
        text = files("lora_chat.serving").joinpath("static", name).read_text(encoding="utf-8")
        assert set(re.findall(r"var\(--([\w-]+)\)", text)) <= {*read_colours("light"), "shadow"}
