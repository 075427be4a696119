"""Choose a chat template, and render prompts exactly as they will be served."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

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


def install_template(tokenizer: "PreTrainedTokenizerBase") -> str:
    """Give a tokenizer without a chat template ours; returns the template in force."""
    if not tokenizer.chat_template:
        tokenizer.chat_template = PLAIN_TEMPLATE
    if isinstance(tokenizer.chat_template, dict):
        if "default" not in tokenizer.chat_template:
            raise DataError("This base has several named chat templates; none of them is the default.")
        tokenizer.chat_template = tokenizer.chat_template["default"]
    return str(tokenizer.chat_template)


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
    from jinja2.exceptions import TemplateError

    try:
        ids = tokenizer.apply_chat_template(
            list(messages),
            tools=list(tools) if tools else None,
            add_generation_prompt=reply_follows,
            tokenize=True,
            return_dict=False,
            sanitize_control_tokens=True,
        )
    except (TemplateError, ValueError) as error:
        raise DataError(f"the base's chat template refuses it: {error}") from error
    return list(ids)
