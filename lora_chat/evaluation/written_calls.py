"""Whether calls can be read from replies of a base: its chat template writes the references, and they are read back."""

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

from lora_chat.data.dialogue import Message
from lora_chat.data.encoding.turns import ReplyRequest, TurnReader
from lora_chat.errors import DataError
from lora_chat.evaluation.measurement import ReplyItem
from lora_chat.evaluation.scores.tool_calls import tool_call_match

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_MAX_CHECKED = 20
"""Number of references that are written and read back."""


def are_calls_readable(
    items: Sequence[ReplyItem], tokenizer: "PreTrainedTokenizerBase", stop_ids: Collection[int]
) -> bool:
    """Return whether the calls of the references are read from the text that the chat template writes for them."""
    called = [item for item in items if item.calls][:_MAX_CHECKED]
    if not called:
        return True
    question = Message("user", "q").as_dict
    requests = [
        ReplyRequest([question, Message("assistant", "", tool_calls=item.calls).as_dict], None, [1]) for item in called
    ]
    try:
        results = TurnReader(tokenizer, stop_ids).read(requests)
    except DataError:
        return False
    for item, turns in zip(called, results, strict=True):
        if isinstance(turns, DataError):
            return False
        ids = tokenizer.encode(turns[0].reply, add_special_tokens=False)
        if not tool_call_match(item.calls, tokenizer.decode(ids, skip_special_tokens=True)):
            return False
    return True
