"""Sections of a page, and small parts that several sections use."""

from dataclasses import dataclass

from lora_chat.report.element import Child, Markup, element

TONES = {
    "better": "good",
    "worse": "bad",
    "no difference shown": "neutral",
    "withheld": "warn",
    "not measured": "neutral",
}
"""Tone of each word of a verdict, which decides its colour."""


@dataclass(frozen=True)
class Section:
    """A part of a page with a heading."""

    key: str
    """Name of its anchor."""
    title: str
    content: Markup


def build_section(section: Section) -> Markup:
    """Return a section with its heading and anchor."""
    heading = element("h2", section.title, id=f"{section.key}-title")
    return element("section", heading, section.content, id=section.key, aria_labelledby=f"{section.key}-title")


def build_word(word: str) -> Markup:
    """Return a word of a verdict as a coloured label."""
    return element("span", word, class_=f"word {TONES.get(word, 'neutral')}")


def build_note(*content: Child, tone: str = "neutral") -> Markup:
    """Return a note beside figures."""
    return element("p", *content, class_=f"note {tone}")


def build_folded(title: str, *content: Child) -> Markup:
    """Return content that opens on a click."""
    return element("details", element("summary", title), *content)


def build_plain_text(text: str, *, limit: int = 600) -> Markup:
    """Return text of a dialogue with its line feeds; the rest of a long one is folded."""
    if len(text) <= limit:
        return element("div", text or element("i", "(empty)"), class_="text", dir="auto")
    rest = element("div", "… ", text[limit:], class_="text", dir="auto")
    start = element("div", text[:limit], " …", class_="text", dir="auto")
    return element("div", start, build_folded(f"{len(text) - limit:,} more characters", rest))
