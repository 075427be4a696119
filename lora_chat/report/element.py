"""HTML and SVG elements. Every text and every attribute is escaped here, so no caller can forget it.

Text of strangers is also made harmless to read: control characters, characters that change the direction of the text
beside them, and invisible characters become visible escapes such as `\\u202e`.
"""

import html
import re
from collections.abc import Iterable
from dataclasses import dataclass

from lora_chat.system.sanitize import sanitize_text

_NAME = re.compile(r"[a-zA-Z][a-zA-Z0-9-]*")
_VOID_TAGS = frozenset({"meta", "input", "br", "hr", "col"})
_SELDOM = re.compile("[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u3164\ufe00-\ufe0f\uffa0\U000e0100-\U000e01ef]")
"""Characters that are printable by their class, but invisible or joined to the character before them."""


@dataclass(frozen=True)
class Markup:
    """HTML in which every text is escaped. Only this module builds it from strings."""

    html: str


Child = Markup | str | int | float | None | Iterable["Child"]
"""The content of an element. Strings and numbers are texts, None is nothing, and iterables are joined."""
Attribute = str | int | float | bool | None
"""The value of an attribute. False and None leave it out; True writes it without a value."""


def element(tag: str, *children: Child, **attributes: Attribute) -> Markup:
    """Return an element. Underscores in names of attributes become hyphens, and a trailing one is dropped."""
    words = [_check_name(tag)]
    for name, value in attributes.items():
        if value is None or value is False:
            continue
        key = _check_name(name.rstrip("_").replace("_", "-"))
        words.append(key if value is True else f'{key}="{_escape(_format_attribute(value))}"')
    opening = f"<{' '.join(words)}>"
    if tag in _VOID_TAGS:
        return Markup(opening)
    return Markup(f"{opening}{join(children).html}</{tag}>")


def join(*children: Child) -> Markup:
    """Return the content of several children, without an element around them."""
    return Markup("".join(_render(child) for child in children))


def show_controls(text: str) -> str:
    """Return text with visible escapes in place of control, direction and invisible characters."""
    if text.replace("\n", " ").replace("\t", " ").isprintable() and not _SELDOM.search(text):
        return text  # the usual case, without a loop over characters
    return sanitize_text(text)


def _render(child: Child) -> str:
    if child is None:
        return ""
    if isinstance(child, Markup):
        return child.html
    if isinstance(child, str | int | float):
        return _escape(str(child))
    return "".join(_render(inner) for inner in child)


def _escape(text: str) -> str:
    return html.escape(show_controls(text), quote=True)


def _format_attribute(value: str | int | float | bool) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)


def _check_name(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise ValueError(f"{name!r} is not a name of an element or attribute")
    return name
