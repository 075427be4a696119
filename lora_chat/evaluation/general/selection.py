"""Which items of a general set are asked: all, or a stratified sample that is the same in every run."""

import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from lora_chat.config.limits import GENERAL_MIN_ITEMS
from lora_chat.evaluation.general.items import GeneralItem
from lora_chat.evaluation.general.reply_texts import EAST_ASIAN_LETTER

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_SEED = 27
_MAX_TOKENS_PER_LETTER = 1.5
"""Tokens of an East Asian letter above which a vocabulary was hardly trained on these languages."""
SHIPPED_NAME = "shipped"
"""Name of the set that is part of the package."""


@dataclass(frozen=True)
class GeneralSet:
    """The items that base and adapted model are asked."""

    items: tuple[GeneralItem, ...]
    available: int
    """Number of items from which they were chosen."""
    name: str = SHIPPED_NAME
    """`shipped`, or the name of the user's file."""
    notes: tuple[str, ...] = ()
    """Sentences about items that are left out, and about the chat template."""

    is_sampled: bool = False
    """Whether a planner may take a sample."""

    @property
    def counts(self) -> tuple[int, ...]:
        """Return the numbers of items that a planner can choose: a sample, twice as many, or all.

        There are few, so that a repeated run on the same machine chooses the same number.
        """
        sizes = (GENERAL_MIN_ITEMS, 2 * GENERAL_MIN_ITEMS) if self.is_sampled else ()
        return (*(size for size in sizes if size < len(self.items)), len(self.items))

    def take(self, count: int) -> "GeneralSet":
        """Return the set with a stratified sample of its items."""
        return self if count >= len(self.items) else replace(self, items=sample_items(self.items, count))


def sample_items(items: Sequence[GeneralItem], count: int) -> tuple[GeneralItem, ...]:
    """Return a sample with each language and kind in its share of all items, in the order of the set.

    It depends only on the items, so that base, adapted model and a repetition are asked the same.
    """
    strata: dict[tuple[str, str], list[int]] = defaultdict(list)
    for number, item in enumerate(items):
        strata[item.language, item.kind].append(number)
    ranked: list[tuple[float, int]] = []
    for (language, kind), numbers in sorted(strata.items()):
        random.Random(f"{_SEED} {language} {kind}").shuffle(numbers)
        ranked += [((rank + 0.5) / len(numbers), number) for rank, number in enumerate(numbers)]
    return tuple(items[number] for number in sorted(number for _, number in sorted(ranked)[:count]))


def leave_out_unknown_scripts(items: Sequence[GeneralItem], tokenizer: "PreTrainedTokenizerBase") -> list[GeneralItem]:
    """Return the items without East Asian ones if the tokenizer splits these letters into bytes."""
    letters = "".join(letter for item in items for letter in EAST_ASIAN_LETTER.findall(item.prompt))
    if not letters:
        return list(items)
    tokens = len(tokenizer.encode(letters, add_special_tokens=False))
    if tokens <= _MAX_TOKENS_PER_LETTER * len(letters):
        return list(items)
    return [item for item in items if not EAST_ASIAN_LETTER.search(item.prompt)]
