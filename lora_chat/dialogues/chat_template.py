"""Choose a chat template, and render with it exactly as it will be served."""

from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from lora_chat.dialogues.tokenizing import TextTokenizer, begin_of_text
from lora_chat.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PLAIN_TEMPLATE = (
    "{%- for message in messages -%}"
    "{{- '### ' + message['role'] | capitalize + ':\n' + message['content'] + eos_token + '\n' -}}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '### Assistant:\n' -}}{%- endif -%}"
)
"""For a base without a template: plain-text role marks, turns ended by the base's eos, no new tokens."""

CHATML_TEMPLATE = (
    "{%- for message in messages -%}"
    "{{- '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' -}}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\n' -}}{%- endif -%}"
)
"""ChatML, for a base whose vocabulary has its two tokens."""

_LARGEST = 1 << 20


def install_template(tokenizer: "PreTrainedTokenizerBase", choice: str | None = None) -> str:
    """Give a tokenizer the chosen template, or ours if it has none; returns the template in force.

    Raises DataError for a file that cannot be read, and for ChatML without its tokens.
    """
    if choice == "chatml":
        if {"<|im_start|>", "<|im_end|>"} - tokenizer.get_vocab().keys():
            raise DataError(
                "data.template: chatml needs a base with <|im_start|> and <|im_end|> in its vocabulary; take plain."
            )
        tokenizer.chat_template = CHATML_TEMPLATE
    elif choice == "plain" or (choice is None and not tokenizer.chat_template):
        tokenizer.chat_template = _plain(tokenizer)
    elif choice:
        tokenizer.chat_template = _read_template(Path(choice))
    if isinstance(tokenizer.chat_template, dict):
        if "default" not in tokenizer.chat_template:
            raise DataError("This base has several named chat templates; none of them is the default.")
        tokenizer.chat_template = tokenizer.chat_template["default"]
    return str(tokenizer.chat_template)


def _plain(tokenizer: "PreTrainedTokenizerBase") -> str:
    """With the beginning of a text that the base knows from its pretraining, if it has one."""
    return ("{{- bos_token -}}" if begin_of_text(tokenizer) else "") + PLAIN_TEMPLATE


def _read_template(path: Path) -> str:
    try:
        text = path.read_bytes()[:_LARGEST].decode("utf-8")
    except OSError as error:
        raise DataError(f"Cannot read the chat template {path}: {error.strerror or error}.") from error
    except UnicodeDecodeError as error:
        raise DataError(f"The chat template {path} is not UTF-8 text (byte {error.start}).") from error
    if not text.strip():
        raise DataError(f"The chat template {path} is empty.")
    return text


def render_texts(
    tokenizer: "PreTrainedTokenizerBase",
    chats: Sequence[Sequence[dict[str, Any]]],
    *,
    reply_follows: bool,
    tools: Sequence[dict[str, Any]] | None = None,
) -> list[str]:
    """Chats as text under the template, with the opening of a reply if one follows; DataError if it refuses them."""
    render = _compiled(str(tokenizer.chat_template))
    words = {"tools": list(tools) if tools else None, "documents": None, "add_generation_prompt": reply_follows}
    try:
        return [render(messages=list(chat), **words, **tokenizer.special_tokens_map) for chat in chats]
    except Exception as error:  # a template is a program of its own, and fails in its own ways
        raise DataError(f"the base's chat template refuses it: {error or type(error).__name__}") from error


@lru_cache(maxsize=8)
def _compiled(template: str) -> Callable[..., str]:
    """A template in transformers' own sandbox.

    `apply_chat_template` compiles it just so, but copies every message first (transformers, `chat_template_utils`):
    with many renderings of a long dialogue that costs more than the template itself. Ours hold plain data only, and
    a test compares both.
    """
    from transformers.utils.chat_template_utils import _compile_jinja_template

    try:
        return cast("Callable[..., str]", _compile_jinja_template(template).render)
    except Exception as error:
        raise DataError(f"the base's chat template cannot be compiled: {error}") from error


def render_ids(
    tokenizer: "PreTrainedTokenizerBase",
    messages: Sequence[dict[str, Any]],
    *,
    reply_follows: bool,
    tools: Sequence[dict[str, Any]] | None = None,
) -> list[int]:
    """Token ids of messages under the template, with the opening of a reply if one follows.

    Control tokens inside the content are encoded as plain text, so content can open no turn of its own.
    Raises DataError if the template refuses the messages.
    """
    coder = TextTokenizer(tokenizer)
    tools = coder.mark(tools)
    # Clients send keys that say nothing as null; templates ask whether a key is there.
    said = [{key: value for key, value in message.items() if value is not None} for message in messages]
    (text,) = render_texts(tokenizer, [coder.mark(said)], reply_follows=reply_follows, tools=tools)
    return coder.tokenize([text])[0].ids
