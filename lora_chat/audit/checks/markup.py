"""Control tokens, chat markup of other models and template code in the text of messages."""

import re
from collections.abc import Collection, Iterator
from functools import cache

from pydantic import TypeAdapter

from lora_chat.audit.data_files import load_data_file
from lora_chat.audit.report import TextMatch
from lora_chat.config.base import NonEmptyStr, StrictModel

_JINJA_CODE = re.compile(
    # https://jinja.palletsprojects.com/templates: {{ name.attribute | filter }}, {% if ... %}; not CSS or TeX braces.
    # Every repetition is bounded, which bounds the work for each opening brace.
    r"(?<![\w}=$\\{])\{\{-?\s{0,40}[A-Za-z_]\w{0,80}(?:\[[^\]\n]{1,40}\]|\([^)\n]{0,80}\)|\.\w{1,80}){0,12}"
    r"\s{0,40}(?:\|[^{}\n]{1,80})?-?\}\}(?!\})|"
    r"\{%-?\s{0,40}(?:if|elif|else|endif|for|endfor|set|macro|endmacro|block|endblock|include|extends|raw)\b[^{}\n]{0,200}-?%\}"
)


class _ChatMarkup(StrictModel):
    """The chat markup of some model families. A text without any of the hints cannot match the pattern."""

    families: NonEmptyStr
    pattern: NonEmptyStr
    hints: tuple[NonEmptyStr, ...]


@cache
def load_chat_markup() -> tuple[tuple[str, ...], re.Pattern[str]]:
    """Return the hints and the pattern of the chat markup of all model families in `chat_markup.json`."""
    entries = load_data_file("checks", "chat_markup.json", TypeAdapter(tuple[_ChatMarkup, ...]))
    pattern = re.compile("|".join(entry.pattern for entry in entries), re.MULTILINE)
    return tuple(hint for entry in entries for hint in entry.hints), pattern


class MarkupDetector:
    """A detector of the control tokens of one base, and of the chat markup of all known model families."""

    def __init__(self, control_tokens: Collection[str]) -> None:
        """Compile the pattern of the control tokens; blank ones are skipped."""
        tokens = sorted({token for token in control_tokens if token.strip()}, key=lambda token: (-len(token), token))
        self._base_pattern = re.compile("|".join(map(re.escape, tokens)))
        self._base_prefixes = sorted({token[:2] for token in tokens})
        self._hints, self._chat_pattern = load_chat_markup()

    def find_tokens(self, text: str) -> Iterator[TextMatch]:
        """Yield the control tokens of the base, then other chat markup."""
        covered: set[int] = set()
        if any(prefix in text for prefix in self._base_prefixes):
            for match in self._base_pattern.finditer(text):
                covered.update(range(*match.span()))
                yield TextMatch("control_token", "control token of this base", match.start(), match.end())
        if any(hint in text for hint in self._hints):
            for match in self._chat_pattern.finditer(text):
                if match.start() not in covered:
                    yield TextMatch("control_token", "chat markup", match.start(), match.end())


def find_template_code(text: str) -> Iterator[TextMatch]:
    """Yield Jinja expressions and statements."""
    if "{{" in text or "{%" in text:
        for match in _JINJA_CODE.finditer(text):
            yield TextMatch("template_code", "Jinja", match.start(), match.end())
