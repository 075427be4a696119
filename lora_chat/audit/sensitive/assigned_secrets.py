"""Secrets known by what stands before them: `api_key = ...`, `password: ...`, `scheme://user:password@host`."""

import math
import re
from collections import Counter
from collections.abc import Iterator

from lora_chat.audit.report import TextMatch

_PLACEHOLDER = re.compile(
    r"example|placeholder|dummy|sample|redacted|censored|changeme|change_me|change-me|replace|insert|foobar|"
    r"your|my[_-]|(?:api|secret|access)[_-]?(?:key|token)|password|passwd|secret|12345678|abcdefgh|qwerty|deadbeef|"
    r"(.)\1{4}|\.\.\.|…|\*\*|^[<\[{$%(]|[>\]})]$|\$\{|\{\{|%\(|%s",
    re.IGNORECASE | re.DOTALL,
)
_EXAMPLE_TOKENS = ("eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9.eyJzdWIiOiIxMjM0NTY3ODkwIiwibmFtZSI6IkpvaG4gRG9lI",)
"""The token that jwt.io shows to every visitor."""


def is_placeholder(value: str) -> bool:
    """Whether a value only shows where a secret would stand."""
    return bool(_PLACEHOLDER.search(value)) or value.startswith(_EXAMPLE_TOKENS) or len(set(value)) < 6


def entropy(value: str) -> float:
    """Shannon entropy of the characters, in bits a character: words about 3, random base64 4.5 and more."""
    counts = Counter(value)
    return -sum(n / len(value) * math.log2(n / len(value)) for n in counts.values())


_SECRET_WORDS = (
    "key",
    "token",
    "secret",
    "passw",
    "pwd",
    "credential",
    "bearer",
    "authorization",
    "kennwort",
    "contrase",
    "passe",
    "senha",
    "wachtw",
)
_NON_ASCII_SECRET_WORDS = ("密码", "密碼", "口令", "パスワード", "비밀번호", "пароль", "hasło", "şifre")

_KEY_WORDS = r"(?:api|access|secret|auth)[ _-]?key|token|secret|credentials?"
_LABELS_OF_PASSWORDS = (
    r"passwor[dt]|passwd|passwort|kennwort|pwd|passphrase|password[ae]|contraseña|mot de passe|senha|пароль|hasło|"
    r"şifre|wachtwoord|密码|密碼|口令|パスワード|비밀번호"
)
_ASSIGNMENT = (
    r"""["'`*]{0,2}\s{0,2}(?::=|=>|[:=：]|\b(?:is|was|ist|lautet|es|est|é|to)\b|是|为|為|は)\s{0,2}["'`*]{0,2}"""
)
_VALUE = r"""([^\s"'`,;<>{}()\[\]，。；、（）「」]{6,256})"""
_ASSIGNED_KEY = re.compile(rf"(?:{_KEY_WORDS})(?:[_-][A-Za-z0-9]{{1,20}}){{0,2}}{_ASSIGNMENT}{_VALUE}", re.IGNORECASE)
_ASSIGNED_PASSWORD = re.compile(rf"(?:{_LABELS_OF_PASSWORDS}){_ASSIGNMENT}{_VALUE}", re.IGNORECASE)
_BEARER = re.compile(r"(?:\bbearer|authorization\W{1,4}basic)\s{1,2}([A-Za-z0-9._~+/-]{20,}={0,2})", re.IGNORECASE)
_URL_PASSWORD = re.compile(
    r"[a-z][a-z0-9+.-]{1,20}://[^\s/:@'\"<>]{0,64}:([^\s/@'\"<>]{3,128})@[\w\[.-]", re.IGNORECASE
)
_CODE_EXPRESSION = re.compile(r"^(?:[A-Za-z_]\w*\.)+[A-Za-z_]\w*$|^[\w.-]*[/\\][\w./\\-]*\.\w{1,5}$|^https?:|^--|^\$")


def find_assigned_secrets(text: str, lower: str) -> Iterator[TextMatch]:
    """Values that a name, a header or a URL calls secret; `lower` is the text in lower case."""
    if may_hold_assigned_secret(lower):
        yield from _find_values(text, _ASSIGNED_KEY, "assigned key or token", 16, 3.2)
        yield from _find_values(text, _BEARER, "authorization header", 20, 3.2)
        yield from _find_values(text, _ASSIGNED_PASSWORD, "password", 6, 2.0)
    if "://" in text:
        for found in _URL_PASSWORD.finditer(text):
            value = found[1]
            if not is_placeholder(value + "!#%&/") and value.lower() not in {"pass", "pwd", "pw", "user"}:
                yield TextMatch("secret", "password in a URL", found.start(1), found.end(1), "[PASSWORD]")


def may_hold_assigned_secret(lower: str) -> bool:
    """Cheap: whether a text in lower case speaks of keys or passwords at all."""
    for name in _SECRET_WORDS:
        if name in lower:
            return True
    return not lower.isascii() and any(name in lower for name in _NON_ASCII_SECRET_WORDS)


def _find_values(text: str, pattern: re.Pattern[str], detail: str, shortest: int, bits: float) -> Iterator[TextMatch]:
    for found in pattern.finditer(text):
        value = found[1].rstrip(".!?:")
        if len(value) >= shortest and entropy(value) >= bits and _looks_random(value) and not is_placeholder(value):
            mark = "[PASSWORD]" if detail == "password" else "[SECRET]"
            yield TextMatch("possible_secret", detail, found.start(1), found.start(1) + len(value), mark)


def _looks_random(value: str) -> bool:
    """A digit among letters, as words, names, paths and calls rarely have."""
    has_digit = any(c.isdigit() for c in value)
    has_letter = any(c.isalpha() for c in value)
    return has_digit and has_letter and value.isascii() and not _CODE_EXPRESSION.search(value)
