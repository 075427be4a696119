"""The chat template of an adapter: the base's, a bundled one, or with consent the adapter's own."""

import difflib
from typing import TYPE_CHECKING

from lora_chat.data.encoding.bundled_templates import find_bundled_template
from lora_chat.data.encoding.chat_template import find_earlier_template, install_template
from lora_chat.data.encoding.thinking_switch import iterate_variants
from lora_chat.errors import ConsentError
from lora_chat.models.adapter_config import StoredAdapter
from lora_chat.models.foreign.chat_template import is_same_template
from lora_chat.system.hashing import digest_text
from lora_chat.system.sanitize import sanitize_lines

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_MAX_SHOWN_LINES, _MAX_SHOWN_CHARACTERS, _MAX_COMPARED_LINES = 400, 40_000, 1000
"""Maximum lines and characters of a template shown in a refusal, and maximum lines compared with the base's."""


def install_trained_template(
    stored: StoredAdapter, tokenizer: "PreTrainedTokenizerBase", *, accept: bool, made_by_user: bool
) -> bool:
    """Install the template of training, and return whether it is an untrusted one.

    The template of training is known by the digest in the adapter's identity. An adapter of another tool has none;
    then it is the template beside its weights, if there is one. An adapter's own template is an untrusted program
    unless this user made it. Raises ConsentError, which shows it, unless the user accepts it.
    """
    if made_by_user and stored.template is not None:
        tokenizer.chat_template = stored.template
        return False
    earlier_template = find_earlier_template(tokenizer)
    base_template = install_template(tokenizer)
    if stored.identity is None:
        known = (base_template, earlier_template)
        if stored.template is None or any(is_same_template(stored.template, text) for text in known):
            return False
        if find_bundled_template(digest_text(stored.template.removesuffix("\n"))):
            tokenizer.chat_template = stored.template.removesuffix("\n")
            return False
        return _install_own_template(stored.name, tokenizer, base_template, stored.template, accept=accept)
    wanted = stored.identity.chat_template
    if wanted == digest_text(base_template):
        return False
    for variant in iterate_variants(base_template):  # the base's, with the default that training chose
        if wanted == digest_text(variant):
            tokenizer.chat_template = variant
            return False
    if wanted == digest_text(earlier_template):
        tokenizer.chat_template = earlier_template
        return False
    bundled = find_bundled_template(wanted)
    if bundled is not None:
        install_template(tokenizer, bundled.name)
        return False
    if stored.template is None or digest_text(stored.template) != wanted:
        return False  # `bind_adapter` raises the error with the difference
    return _install_own_template(stored.name, tokenizer, base_template, stored.template, accept=accept)


def _install_own_template(
    name: str, tokenizer: "PreTrainedTokenizerBase", base_template: str, own_template: str, *, accept: bool
) -> bool:
    """Install an adapter's own template. Raise ConsentError, which shows it, unless the user accepts it."""
    if not accept:
        raise ConsentError(
            f"{name} has its own chat template, a program that decides what the model reads:\n"
            f"{_format_template_diff(base_template, own_template)}\nIt was not run.",
            "--accept-template",
        )
    tokenizer.chat_template = own_template
    return True


def _format_template_diff(base_template: str, own_template: str) -> str:
    """Format the difference of two templates in visible text; a long difference is cut."""
    lines, others = base_template.splitlines(), own_template.splitlines()
    if max(len(lines), len(others)) <= _MAX_COMPARED_LINES:
        diff_lines = list(difflib.unified_diff(lines, others, "the base's", "its own", lineterm=""))
    else:
        # The comparison of long templates can take minutes.
        diff_lines = ["+++ its own", *(f"+{line}" for line in others)]
    text = sanitize_lines("\n".join(diff_lines[:_MAX_SHOWN_LINES])[:_MAX_SHOWN_CHARACTERS])
    num_hidden = (
        sum(map(len, diff_lines))
        + len(diff_lines)
        - 1
        - min(len("\n".join(diff_lines[:_MAX_SHOWN_LINES])), _MAX_SHOWN_CHARACTERS)
    )
    return f"{text}\n... and {num_hidden:,} more characters, not shown" if num_hidden > 0 else text
