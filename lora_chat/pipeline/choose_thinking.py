"""The switch for thoughts of a run: found in the chat template, decided by the data, and installed for its adapter."""

import logging
from collections.abc import Collection
from dataclasses import replace
from typing import TYPE_CHECKING

from lora_chat.data.encoding.thinking_switch import (
    Thinking,
    ThinkingMode,
    ThinkingValue,
    find_switch,
    list_other_variables,
    read_switch,
    read_thinking,
    set_default,
    set_thinking,
)
from lora_chat.data.encoding.turns import ReplyRequest, TurnReader
from lora_chat.data.storage.ledger import Ledger
from lora_chat.errors import DataError, UsageError
from lora_chat.models.adapter_config import StoredAdapter
from lora_chat.models.identity import Identity, ThinkingIdentity

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)


def configure_thinking(
    tokenizer: "PreTrainedTokenizerBase", mode: ThinkingMode | None, stop_ids: Collection[int], parent: Identity | None
) -> None:
    """Let a tokenizer encode replies by `data.thinking`.

    A run that continues an adapter without the setting has none either. Raises DataError for a template without a
    switch.
    """
    set_thinking(tokenizer, None)
    if mode is None or (mode == "auto" and parent is not None and parent.thinking is None):
        return
    switch = find_switch(tokenizer)
    if switch is None:
        if mode != "auto":
            raise DataError(_explain_missing_switch(str(tokenizer.chat_template), mode))
        return
    set_thinking(tokenizer, Thinking(switch, mode))
    if mode == "auto" and not _can_train_without_thoughts(tokenizer, stop_ids):
        set_thinking(tokenizer, None)


def decide_default(
    tokenizer: "PreTrainedTokenizerBase", ledger: Ledger, parent: Identity | None
) -> ThinkingIdentity | None:
    """Set the default of the chat template by the data, and return how the adapter stores it.

    Raises DataError if an adapter that is continued has another default.
    """
    thinking = read_thinking(tokenizer)
    if thinking is None or not ledger.replies:
        set_thinking(tokenizer, None)
        return None
    default: ThinkingValue | None = None
    if thinking.mode != "auto":
        default = thinking.mode
    elif ledger.thoughts in (0, ledger.replies):
        default = "on" if ledger.thoughts else "off"
    if parent is not None and parent.thinking is not None and parent.thinking.default != default:
        if thinking.mode != "auto":
            raise DataError(
                f"data.thinking: the adapter that is continued has {thinking.switch.variable} "
                f"{parent.thinking.default or 'on and off'}. Fix: --set data.thinking=auto, or "
                "--set adapter.stack=merge_first."
            )
        default = parent.thinking.default
        logger.info(f"Chats keep the default of the adapter that is continued: {default or 'of the template'}")
    elif default is not None:
        set_default(tokenizer, thinking.switch, default)
    set_thinking(tokenizer, replace(thinking, default=default))
    return ThinkingIdentity(variable=thinking.switch.variable, mode=thinking.mode, default=default)


def install_trained_thinking(stored: StoredAdapter, tokenizer: "PreTrainedTokenizerBase") -> None:
    """Let a tokenizer encode replies as in the training of an adapter."""
    trained = stored.identity.thinking if stored.identity else None
    switch = read_switch(trained.variable) if trained else None
    thinking = Thinking(switch, trained.mode, trained.default) if switch and trained else None
    set_thinking(tokenizer, thinking)


def override_default(tokenizer: "PreTrainedTokenizerBase", value: ThinkingValue) -> None:
    """Make a position of the switch the default of a chat. Raise UsageError for a template without a switch."""
    switch = find_switch(tokenizer)
    if switch is None:
        raise UsageError(f"--thinking {value}: the chat template has no switch for thoughts. Fix: leave it out.")
    set_default(tokenizer, switch, value)


def describe_thinking(thinking: ThinkingIdentity | None, ledger: Ledger) -> str | None:
    """Return a sentence about the thoughts in the data and what is trained; None if there is nothing to say."""
    if thinking is None and not ledger.thoughts:
        return None
    count = f"{ledger.thoughts:,} of {ledger.replies:,} replies have thoughts"
    if thinking is None:
        return f"{count}, which are trained"
    name, rest = thinking.variable, ledger.replies - ledger.thoughts
    if thinking.mode == "on" and rest:
        return f"{count}; all are trained with {name} on, and empty blocks of thoughts carry no loss"
    if thinking.default is not None and not 0 < ledger.thoughts < ledger.replies:
        return f"{count}: trained with {name} {thinking.default}, which is the default of chat and exports too"
    return f"{count} and are trained with {name} on, {rest:,} with it off; chat --thinking chooses"


def _can_train_without_thoughts(tokenizer: "PreTrainedTokenizerBase", stop_ids: Collection[int]) -> bool:
    """Return whether a plain reply can be trained after the prompt with the switch off."""
    chat = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    (turns,) = TurnReader(tokenizer, stop_ids).read([ReplyRequest(chat, None, [1])])
    return not isinstance(turns, DataError)


def _explain_missing_switch(template: str, mode: str) -> str:
    """Return the refusal of a template without a switch, with what it has."""
    names = list_other_variables(template)
    has = f"it has {', '.join(names)}, which does not turn thoughts off" if names else "it has no variable for thoughts"
    if "<think>" in template and not names:
        has = "it writes <think> without a variable"
    return (
        f"data.thinking: {mode} needs a chat template with a switch such as enable_thinking: {has}. "
        "Fix: leave data.thinking out, or name another data.template."
    )
