"""Which added tokens are ordinary text, such as HTML elements: they stay tokens in content, as in Transformers.

A token that is not special can still open a turn, such as `<|User|>` of DeepSeek. Such tokens are not ordinary.
"""

import re
from functools import lru_cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Gemma has these as single tokens. They are ordinary even in a template that writes them.
_HTML_ELEMENTS = (
    "table|caption|thead|tbody|tfoot|tr|th|td|h[1-6]|blockquote|strong|em|b|i|u|s|sub|sup|code|p|a|li|ul|ol"
)
_PLAIN_TEXT_TOKEN = re.compile(rf"\s*|</?({_HTML_ELEMENTS})>")
_MORE_HTML_ELEMENTS = """
abbr address area article aside audio base bdi bdo big body br button canvas center cite col colgroup data datalist dd
del details dfn dialog dir div dl dt embed fieldset figcaption figure font footer form frame frameset head header hgroup
hr html iframe img input ins kbd label legend link main map mark menu meta meter nav nobr noscript object ol optgroup
option output param picture pre progress q rp rt ruby samp script search section select slot small source span strike
style summary svg template textarea time title track tt var video wbr
"""
_MORE_HTML_NAMES = frozenset(_MORE_HTML_ELEMENTS.split())
_ELEMENT = re.compile(r"</?([a-z][a-z0-9]*) ?/?>", re.IGNORECASE)
_WORDS_ONLY = re.compile(r"[\w\s]*")
_CONTROL_SHAPE = re.compile("<[|\uff5c]|<<|[|\uff5c]>|>>")
"""Ends of control tokens: `<|im_start|>`, `<<SYS>>` and the wide bars of DeepSeek."""
_ROLE_WORDS = """
system user assistant human gpt bot ai model developer tool tools function functions observation environment
"""
_REPLY_WORDS = """
think thinking thought thoughts reasoning reason reflection call calls response responses result results output
outputs answer channel final analysis commentary arguments args execute
"""
_BORDER_WORDS = """
turn message msg header role im start end begin stop bos eos eot eom eod endoftext endofturn startofturn pad unk inst
sys prompt image img video audio vision media fim
"""
_CONTROL_WORDS = frozenset(f"{_ROLE_WORDS} {_REPLY_WORDS} {_BORDER_WORDS}".split())
"""Words of tokens that chat formats use: roles, parts of a reply, and borders of turns and of other kinds of input."""
_WORD = re.compile(r"[^\W_\d]+")
_RULE_ATTRIBUTE = "lora_chat_token_rule"
LAST_RULE = 2
"""Rule of this version. Rule 1, of earlier versions, knew only blanks and some HTML elements as ordinary tokens."""


def use_token_rule(tokenizer: "PreTrainedTokenizerBase", rule: int) -> None:
    """Let a tokenizer read added tokens by the rule of an earlier version, under which an adapter was trained."""
    setattr(tokenizer, _RULE_ATTRIBUTE, rule)


def read_token_rule(tokenizer: "PreTrainedTokenizerBase") -> int:
    """Return the rule by which a tokenizer reads added tokens."""
    rule: int = getattr(tokenizer, _RULE_ATTRIBUTE, LAST_RULE)
    return rule


def find_ordinary_tokens(tokenizer: "PreTrainedTokenizerBase", rule: int | None = None) -> frozenset[str]:
    """Return the added tokens that are ordinary text by a rule, or by the rule of this tokenizer."""
    names = tuple(token.content for token in tokenizer.added_tokens_decoder.values() if not token.special)
    if (rule or read_token_rule(tokenizer)) == 1:
        return frozenset(name for name in names if _PLAIN_TEXT_TOKEN.fullmatch(name))
    with_role = frozenset(map(str, tokenizer.special_tokens_map.values()))
    return _select_ordinary(names, str(tokenizer.chat_template or "")) - with_role


@lru_cache(maxsize=16)
def _select_ordinary(names: tuple[str, ...], template: str) -> frozenset[str]:
    """Return the names that neither the template nor their spelling makes control tokens."""
    return frozenset(name for name in names if _is_ordinary(name, template))


def _is_ordinary(name: str, template: str) -> bool:
    """Return whether a token that is not special is ordinary text under a chat template."""
    if _PLAIN_TEXT_TOKEN.fullmatch(name) or _WORDS_ONLY.fullmatch(name):
        return True
    if name in template or _CONTROL_SHAPE.search(name):
        return False
    if (element := _ELEMENT.fullmatch(name)) and element[1].lower() in _MORE_HTML_NAMES:
        return True
    return _CONTROL_WORDS.isdisjoint(_WORD.findall(name.lower()))
