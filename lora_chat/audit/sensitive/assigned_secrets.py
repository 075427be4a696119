"""Secrets that the text before them announces: `api_key = ...`, `password: ...`, `scheme://user:password@host`."""

import math
import re
from collections import Counter
from collections.abc import Iterator
from functools import cache, cached_property

from pydantic import TypeAdapter

from lora_chat.audit.data_files import load_data_file
from lora_chat.audit.report import TextMatch
from lora_chat.audit.sensitive.cue_words import whole_words
from lora_chat.audit.sensitive.examples import is_placeholder
from lora_chat.config.base import NonEmptyStr, StrictModel

_ASSIGNMENT = (
    r"""["'`*]{0,2}\s{0,2}(?::=|=>|[:=：]|\b(?:is|was|ist|lautet|es|est|é|to)\b|是|为|為|は)\s{0,2}["'`*]{0,2}"""
)
_VALUE = r"""([^\s"'`,;<>{}()\[\]，。；、（）「」]{6,256})"""
_BEARER = re.compile(r"(?:\bbearer|authorization\W{1,4}basic)\s{1,2}([A-Za-z0-9._~+/-]{20,}={0,2})", re.IGNORECASE)
_URL_PASSWORD = re.compile(
    r"[a-z][a-z0-9+.-]{1,20}://[^\s/:@'\"<>]{0,64}:([^\s/@'\"<>]{3,128})@[\w\[.-]", re.IGNORECASE
)
_CODE_EXPRESSION = re.compile(r"^(?:[A-Za-z_]\w*\.)+[A-Za-z_]\w*$|^[\w.-]*[/\\][\w./\\-]*\.\w{1,5}$|^https?:|^--|^\$")


class SecretWords(StrictModel):
    """The content of `secret_words.json`, in several languages."""

    hints: tuple[NonEmptyStr, ...]
    """Parts of words. An ASCII text in lower case without any of them does not announce a secret."""
    non_ascii_hints: tuple[NonEmptyStr, ...]
    """Further hints for other texts."""
    key_patterns: tuple[NonEmptyStr, ...]
    """Patterns of the names of keys and tokens."""
    other_suffixes: tuple[NonEmptyStr, ...]
    """Patterns of words after the name of a key that make it another name: `token_type`."""
    password_patterns: tuple[NonEmptyStr, ...]
    """Patterns of the names of passwords."""

    @cached_property
    def key_regex(self) -> re.Pattern[str]:
        """Return the compiled pattern of an assignment of a key, with the value as a group."""
        other = rf"(?![_-]?(?:{'|'.join(self.other_suffixes)})(?![a-z]))"
        names = whole_words(self.key_patterns)
        suffixes = r"(?:(?:[_-]|(?-i:(?<=[a-z])(?=[A-Z])))[A-Za-z0-9]{1,20}){0,2}"
        return re.compile(rf"{names}{other}{suffixes}{_ASSIGNMENT}{_VALUE}", re.IGNORECASE)

    @cached_property
    def password_regex(self) -> re.Pattern[str]:
        """Return the compiled pattern of an assignment of a password, with the value as a group."""
        return re.compile(rf"{whole_words(self.password_patterns)}{_ASSIGNMENT}{_VALUE}", re.IGNORECASE)


@cache
def load_secret_words() -> SecretWords:
    """Return the words that announce secrets."""
    return load_data_file("sensitive", "secret_words.json", TypeAdapter(SecretWords))


def entropy(value: str) -> float:
    """Return the Shannon entropy in bits per character: words have about 3, random base64 has 4.5 and more."""
    counts = Counter(value)
    return -sum(n / len(value) * math.log2(n / len(value)) for n in counts.values())


def find_assigned_secrets(text: str, lower: str | None) -> Iterator[TextMatch]:
    """Yield the values that a name, a header or a URL calls secret; `lower` is the text in lower case.

    Without `lower`, the cheap test for the names is left out.
    """
    if lower is None or may_contain_assigned_secret(lower):
        secret_words = load_secret_words()
        yield from _find_values(text, secret_words.key_regex, "assigned key or token", 16, 3.2)
        yield from _find_values(text, _BEARER, "authorization header", 20, 3.2)
        yield from _find_values(text, secret_words.password_regex, "password", 6, 2.0)
    if "://" in text:
        for match in _URL_PASSWORD.finditer(text):
            value = match[1]
            if not is_placeholder(value + "!#%&/") and value.lower() not in {"pass", "pwd", "pw", "user"}:
                yield TextMatch("secret", "password in a URL", match.start(1), match.end(1), "[PASSWORD]")


def may_contain_assigned_secret(lower: str) -> bool:
    """Return False only if a text in lower case does not mention keys or passwords."""
    secret_words = load_secret_words()
    for hint in secret_words.hints:
        if hint in lower:
            return True
    return not lower.isascii() and any(hint in lower for hint in secret_words.non_ascii_hints)


def _find_values(
    text: str, pattern: re.Pattern[str], detail: str, min_length: int, min_entropy: float
) -> Iterator[TextMatch]:
    """Yield the values in an assignment that look random."""
    for match in pattern.finditer(text):
        value = match[1].rstrip(".!?:")
        is_random = len(value) >= min_length and entropy(value) >= min_entropy and _looks_random(value)
        if is_random and not is_placeholder(value):
            mark = "[PASSWORD]" if detail == "password" else "[SECRET]"
            yield TextMatch("possible_secret", detail, match.start(1), match.start(1) + len(value), mark)


def _looks_random(value: str) -> bool:
    """Return whether a value has letters and digits, which words, names, paths and calls rarely have together."""
    has_digit = any(c.isdigit() for c in value)
    has_letter = any(c.isalpha() for c in value)
    return has_digit and has_letter and value.isascii() and not _CODE_EXPRESSION.search(value)
