"""JSON validity and equality of a reply."""

from lora_chat.system.strict_json import parse_strict_json

_FENCE = "```"
_MAX_TEXT = 1_000_000
"""Most characters of a text that is parsed."""


def is_json_structure(text: str) -> bool:
    """Return whether a text is a JSON object or list, or a Markdown block of one."""
    try:
        return isinstance(_parse(_strip_fence(text)), dict | list)
    except ValueError:
        return False


def json_valid(reference: str, reply: str) -> bool:
    """Return whether the reply is an object or a list of JSON, as its reference is.

    A reply in a Markdown block is valid only if its reference is in one, too.
    """
    try:
        value = _parse(_strip_fence(reply) if _has_fence(reference) else reply)
    except ValueError:
        return False
    try:
        wanted = _parse(_strip_fence(reference))
    except ValueError:
        return isinstance(value, dict | list)
    return type(value) is type(wanted)


def json_match(reference: str, reply: str) -> tuple[float, float]:
    """Return whether both are equal as JSON, and whether the reference is JSON."""
    try:
        wanted = _parse(_strip_fence(reference))
    except ValueError:
        return 0.0, 0.0
    try:
        value = _parse(_strip_fence(reply) if _has_fence(reference) else reply)
    except ValueError:
        return 0.0, 1.0
    return float(json_equal(wanted, value)), 1.0


def json_equal(first: object, second: object) -> bool:
    """Return whether two values of JSON are equal; true differs from 1, and the order of keys is not compared."""
    if isinstance(first, bool) or isinstance(second, bool):
        return first is second
    if isinstance(first, dict) and isinstance(second, dict):
        return first.keys() == second.keys() and all(json_equal(first[key], second[key]) for key in first)
    if isinstance(first, list) and isinstance(second, list):
        return len(first) == len(second) and all(map(json_equal, first, second))
    return first == second


def _parse(text: str) -> object:
    """Return the value of a JSON text. Raise ValueError for anything else."""
    if len(text) > _MAX_TEXT:
        raise ValueError("is too long")
    value: object = parse_strict_json(text.strip())
    return value


def _has_fence(text: str) -> bool:
    """Return whether a text is a Markdown block."""
    text = text.strip()
    return len(text) > 2 * len(_FENCE) and text.startswith(_FENCE) and text.endswith(_FENCE)


def _strip_fence(text: str) -> str:
    """Return the content of a Markdown block, or the text itself."""
    if not _has_fence(text):
        return text
    return text.strip()[: -len(_FENCE)].partition("\n")[2]
