"""Control tokens, other models' chat markup and template code in what is said."""

import re
from collections.abc import Collection, Iterator

from lora_chat.audit.report import TextMatch

_CHAT_MARKUP = re.compile(
    # ChatML, Llama 3, Phi, gpt-oss, DeepSeek, Command; then Llama 2 and Mistral, Gemma, Alpaca
    r"<[|｜][A-Za-z][\w▁ ]{1,40}[|｜]>|\[/?INST\]|<</?SYS>>|<(?:start|end)_of_turn>|"
    r"^### ?(?:Instruction|Response|Human|Assistant):",
    re.MULTILINE,
)
_CHAT_MARKUP_HINTS = (
    "<|",
    "<｜",
    "INST]",
    "SYS>>",
    "_of_turn>",
    "### I",
    "### R",
    "### H",
    "### A",
    "###I",
    "###R",
    "###H",
    "###A",
)
_JINJA_CODE = re.compile(
    # https://jinja.palletsprojects.com/templates: {{ name.attribute | filter }}, {% if ... %}; not CSS or TeX braces
    # Every repetition is bounded, so that the work for each opening brace is.
    r"(?<![\w}=$\\{])\{\{-?\s{0,40}[A-Za-z_]\w{0,80}(?:\[[^\]\n]{1,40}\]|\([^)\n]{0,80}\)|\.\w{1,80}){0,12}"
    r"\s{0,40}(?:\|[^{}\n]{1,80})?-?\}\}(?!\})|"
    r"\{%-?\s{0,40}(?:if|elif|else|endif|for|endfor|set|macro|endmacro|block|endblock|include|extends|raw)\b[^{}\n]{0,200}-?%\}"
)


class MarkupDetector:
    """Looks for the control tokens of one base and for what is markup anywhere."""

    def __init__(self, control_tokens: Collection[str]) -> None:
        """`read_control_tokens` as the tokenizer spells them; blank ones are passed over."""
        own = sorted({token for token in control_tokens if token.strip()}, key=lambda token: (-len(token), token))
        self._base_pattern = re.compile("|".join(map(re.escape, own)))
        self._base_prefixes = sorted({token[:2] for token in own})

    def find_tokens(self, text: str) -> Iterator[TextMatch]:
        """Control tokens of the base, then markup of other families that is none of them."""
        taken: set[int] = set()
        if any(beginning in text for beginning in self._base_prefixes):
            for found in self._base_pattern.finditer(text):
                taken.update(range(*found.span()))
                yield TextMatch("control_token", "control token of this base", found.start(), found.end())
        if any(hint in text for hint in _CHAT_MARKUP_HINTS):
            for found in _CHAT_MARKUP.finditer(text):
                if found.start() not in taken:
                    yield TextMatch("control_token", "chat markup", found.start(), found.end())


def find_template_code(text: str) -> Iterator[TextMatch]:
    """Jinja expressions and statements."""
    if "{{" in text or "{%" in text:
        for found in _JINJA_CODE.finditer(text):
            yield TextMatch("template_code", "Jinja", found.start(), found.end())
