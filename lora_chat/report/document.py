"""The whole page: style, script, data and content security policy.

The policy allows exactly the style and the script of this package, by their digests, and no request at all. Text that
slipped through the escapes could therefore neither run nor load anything.
"""

import base64
import hashlib
import json
import math
from functools import cache
from importlib import resources

from lora_chat.report.element import Markup, element, join, show_controls

_MIN_JSON_ESCAPES = {"<": "\\u003c", ">": "\\u003e", "&": "\\u0026", "\u2028": "\\u2028", "\u2029": "\\u2029"}
"""Escapes without which JSON text could end its element or a line of a script."""


def build_document(title: str, body: Markup, data: object) -> str:
    """Return the text of a self-contained page. The script reads `data` as JSON."""
    style, script = _read_asset("page.css"), _read_asset("page.js")
    policy = (
        f"default-src 'none'; style-src '{digest_source(style)}'; script-src '{digest_source(script)}'; "
        "img-src data:; base-uri 'none'; form-action 'none'"
    )
    head = element(
        "head",
        element("meta", charset="utf-8"),
        Markup(f'<meta http-equiv="Content-Security-Policy" content="{policy}">'),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="referrer", content="no-referrer"),
        element("meta", name="color-scheme", content="light dark"),
        element("title", title),
        Markup(f"<style>{style}</style>"),
    )
    content = element(
        "body",
        body,
        Markup(f'<script type="application/json" id="report-data">{encode_json(data)}</script>'),
        Markup(f"<script>{script}</script>"),
    )
    return "<!DOCTYPE html>\n" + join(Markup('<html lang="en">'), head, content, Markup("</html>")).html + "\n"


def digest_source(text: str) -> str:
    """Return the digest of an inline style or script, as a content security policy names it."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode("ascii")


def encode_json(value: object) -> str:
    """Return JSON that cannot end the script element around it. Numbers that are not finite become null."""
    text = json.dumps(_make_harmless(value), ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for character, escape in _MIN_JSON_ESCAPES.items():
        text = text.replace(character, escape)
    return text


def _make_harmless(value: object) -> object:
    """Return the value with visible escapes for control characters, and null for non-finite numbers."""
    if isinstance(value, str):
        return show_controls(value)
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {show_controls(str(key)): _make_harmless(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_make_harmless(inner) for inner in value]
    return value


@cache
def _read_asset(name: str) -> str:
    """Return a text file of this package. It may not contain a closing tag, which would end its element."""
    text = resources.files("lora_chat.report").joinpath(name).read_text(encoding="utf-8")
    if "</" in text or "<!--" in text:
        raise ValueError(f"{name} contains a tag or a comment of HTML")
    return text
