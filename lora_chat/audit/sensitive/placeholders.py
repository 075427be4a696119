"""Stand-ins for secrets in documentation: `sk-xxxx`, `<your key>`, `AKIA...EXAMPLE`."""

import math
import re
from collections import Counter

_STAND_IN = re.compile(
    r"example|placeholder|dummy|sample|redacted|censored|changeme|change_me|change-me|replace|insert|foobar|"
    r"your|my[_-]|(?:api|secret|access)[_-]?(?:key|token)|password|passwd|secret|12345678|abcdefgh|qwerty|deadbeef|"
    r"(.)\1{4}|\.\.\.|…|\*\*|^[<\[{$%(]|[>\]})]$|\$\{|\{\{|%\(|%s",
    re.IGNORECASE | re.DOTALL,
)
_DOCUMENTED = ("eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9.eyJzdWIiOiIxMjM0NTY3ODkwIiwibmFtZSI6IkpvaG4gRG9lI",)
"""The token that jwt.io shows to every visitor."""


def is_placeholder(value: str) -> bool:
    """Whether a value only shows where a secret would stand."""
    return bool(_STAND_IN.search(value)) or value.startswith(_DOCUMENTED) or len(set(value)) < 6


def entropy(value: str) -> float:
    """Shannon entropy of the characters, in bits a character: words about 3, random base64 4.5 and more."""
    counts = Counter(value)
    return -sum(n / len(value) * math.log2(n / len(value)) for n in counts.values())
