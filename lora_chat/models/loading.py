"""RUN, ADAPTER or BASE -> a model that can talk."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lora_chat.models.adapter import TEMPLATE_NAME, load_adapter, read_base_name, read_identity
from lora_chat.models.base_model import FoundBase, find_base, load_base_model, load_tokenizer
from lora_chat.models.identity import check_identity, identify
from lora_chat.planning.plan import PrecisionPlan
from lora_chat.planning.recipe import BaseSection

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class FoundAdapter:
    """An adapter, its base, and the tokenizer with the template of training; no weights loaded yet."""

    folder: Path
    base: FoundBase
    tokenizer: "PreTrainedTokenizerBase"

    def load(self, precision: PrecisionPlan) -> "PreTrainedModel":
        """Base and adapter, ready to answer."""
        return load_adapter(load_base_model(self.base, precision), self.folder)


def find_adapter(folder: Path, notice: Callable[[str], None], *, own_template: bool = False) -> FoundAdapter:
    """Find an adapter's base and make sure that it is the one it was trained on.

    Its chat template is taken where the base has none, and with `own_template` (for runs made here) in any case.
    Raises IntegrityError if it is another, BaseUnavailableError if it cannot be found.
    """
    name, revision = read_base_name(folder)
    base = find_base(BaseSection(name=name, revision=revision), notice)
    tokenizer = load_tokenizer(base)
    template = folder / TEMPLATE_NAME
    if template.is_file() and (own_template or not tokenizer.chat_template):
        tokenizer.chat_template = template.read_text(encoding="utf-8")
    trained = read_identity(folder)
    if trained is None:
        notice(f"{folder} does not say which weights it was trained on; only names and shapes are checked.")
    else:
        check_identity(trained, identify(base, tokenizer), folder)
    return FoundAdapter(folder, base, tokenizer)
