"""RUN, ADAPTER or BASE -> a model that can talk."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lora_chat.models.adapter import load_adapter
from lora_chat.models.base_model import FoundBase, find_base, load_base_model, load_tokenizer
from lora_chat.models.identity import check_identity, identify
from lora_chat.models.stored_adapter import StoredAdapter
from lora_chat.planning.plan import PrecisionPlan
from lora_chat.planning.recipe import BaseSection

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class FoundAdapter:
    """An adapter, its base, and the tokenizer with the template of training; no weights loaded yet."""

    stored: StoredAdapter
    base: FoundBase
    tokenizer: "PreTrainedTokenizerBase"

    def load(self, precision: PrecisionPlan) -> "PreTrainedModel":
        """Base and adapter, ready to answer."""
        return load_adapter(load_base_model(self.base, precision), self.stored)


def find_adapter(stored: StoredAdapter, notice: Callable[[str], None], *, own_template: bool = False) -> FoundAdapter:
    """Find an adapter's base and make sure that it is the one it was trained on.

    Its chat template is taken where the base has none, and with `own_template` (for runs made here) in any case.
    Raises IntegrityError if it is another, BaseUnavailableError if it cannot be found.
    """
    name, revision = stored.base
    base = find_base(BaseSection(name=name, revision=revision), notice)
    tokenizer = load_tokenizer(base)
    if stored.template is not None and (own_template or not tokenizer.chat_template):
        tokenizer.chat_template = stored.template
    if stored.identity is None:
        notice(f"{stored.name} does not say which weights it was trained on; only names and shapes are checked.")
    else:
        check_identity(stored.identity, identify(base, tokenizer), stored.name)
    return FoundAdapter(stored, base, tokenizer)
