"""Tokens of the tokenizer that stay tokens when they occur in message text (`data.keep_tokens`).

All other added tokens are encoded as plain characters, so that content cannot open a turn. The tokens are recorded in
the tokenizer's settings, which every encoding reads, and which `save_pretrained` writes into a merged model's folder.
"""

import re
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from typing import TYPE_CHECKING

from lora_chat.data.dialogue import ChatMessage
from lora_chat.data.encoding.chat_template import render_texts
from lora_chat.data.encoding.control_tokens import (
    KEPT_TOKENS_FIELD,
    read_control_tokens,
    read_kept_tokens,
)
from lora_chat.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_CALL = {"type": "function", "function": {"name": "f", "arguments": {}}}
_SAMPLE_CHATS: tuple[tuple[Sequence[ChatMessage], bool], ...] = (
    ([{"role": "system", "content": "s"}, {"role": "user", "content": "q"}], True),
    ([{"role": "user", "content": "q"}], True),
    ([{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}, {"role": "user", "content": "q"}], True),
    ([{"role": "user", "content": "q"}, {"role": "assistant", "content": "", "tool_calls": [_CALL]}], False),
)
"""Chats that show which tokens a template writes, each with whether a reply is opened; a template may refuse some."""


def keep_tokens(
    tokenizer: "PreTrainedTokenizerBase",
    names: Collection[str],
    stop_ids: Collection[int] = (),
    *,
    run_template: bool = True,
) -> None:
    """Let added tokens stay tokens in message text from now on.

    Raises DataError for a token that the tokenizer does not have or that ends or opens a turn. Unless `run_template`,
    the chat template is only searched for the tokens and not run.
    """
    if not names:
        return
    added = {token.content: number for number, token in tokenizer.added_tokens_decoder.items()}
    texts = [str(tokenizer.chat_template or ""), *(_render_samples(tokenizer) if run_template else ())]
    reserved = _reserved_names(tokenizer, stop_ids)
    for name in names:
        if name not in added:
            known = "a token of the vocabulary, which needs no setting" if name in tokenizer.get_vocab() else ""
            raise DataError(
                f"data.keep_tokens: {name!a} is {known or 'not a token of this tokenizer'}. Fix: "
                + ("remove it." if known else f"add and train it with adapter.new_tokens: [{name}].")
            )
        if name in reserved or any(name in text for text in texts):
            raise DataError(
                f"data.keep_tokens: {name!a} is a control token of the chat template or ends a reply, so message text "
                "could open or end a turn. Fix: remove it from the list."
            )
    tokenizer.init_kwargs[KEPT_TOKENS_FIELD] = sorted({*read_kept_tokens(tokenizer), *names})


def list_keepable_tokens(tokenizer: "PreTrainedTokenizerBase", stop_ids: Collection[int]) -> frozenset[str]:
    """Return the control tokens that `data.keep_tokens` could keep: those that no template or setting uses."""
    texts = [str(tokenizer.chat_template or ""), *_render_samples(tokenizer)]
    reserved = _reserved_names(tokenizer, stop_ids)
    names = (name for name in read_control_tokens(tokenizer) if name.strip())
    return frozenset(name for name in names if name not in reserved and not any(name in text for text in texts))


def _reserved_names(tokenizer: "PreTrainedTokenizerBase", stop_ids: Collection[int]) -> set[str]:
    """Return the tokens with a role of their own, such as eos and padding, and those that end a reply."""
    decoder = tokenizer.added_tokens_decoder
    stops = {decoder[number].content for number in stop_ids if number in decoder}
    return stops | {str(name) for name in tokenizer.special_tokens_map.values() if isinstance(name, str)}


def _render_samples(tokenizer: "PreTrainedTokenizerBase") -> Iterator[str]:
    """Yield what the chat template writes around messages."""
    for chat, opens_reply in _SAMPLE_CHATS if tokenizer.chat_template else ():
        try:
            yield from render_texts(tokenizer, [chat], add_generation_prompt=opens_reply)
        except DataError:  # templates refuse system messages or tools
            continue


class TokenCounter:
    """Counter of the added tokens in message text: those that stay tokens, and those that become characters."""

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", stop_ids: Collection[int]) -> None:
        self._kept = frozenset(read_kept_tokens(tokenizer))
        names = sorted(self._kept | list_keepable_tokens(tokenizer, stop_ids), key=len, reverse=True)
        self._first_characters = frozenset(name[0] for name in names)
        self._pattern = re.compile("|".join(map(re.escape, names)) or "(?!)")

    def count(self, messages: object) -> tuple[dict[str, int], dict[str, int]]:
        """Return how often each kept token, and each token written as characters, occurs in messages."""
        counts = Counter(
            match
            for text in _iterate_texts(messages)
            if any(first in text for first in self._first_characters)  # much faster than the pattern
            for match in self._pattern.findall(text)
        )
        kept_counts = {name: count for name, count in counts.items() if name in self._kept}
        return kept_counts, {name: count for name, count in counts.items() if name not in self._kept}


def _iterate_texts(value: object) -> Iterator[str]:
    """Yield all texts in messages, except for roles."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, item in value.items():
            if key != "role":
                yield from _iterate_texts(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _iterate_texts(item)
