"""An adapter with the base that it belongs to: the model that can talk."""

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lora_chat.config.plan import PrecisionPlan
from lora_chat.models.adapter import load_adapter
from lora_chat.models.adapter_config import StoredAdapter
from lora_chat.models.base_model import LocalBase, load_base_model
from lora_chat.models.identity import (
    UNCOVERED_BY_VERSION_1,
    check_identity,
    compute_identity,
    list_identity_differences,
)

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class BoundAdapter:
    """An adapter, its base, and the tokenizer with the template of training; no weights loaded yet."""

    stored: StoredAdapter
    base: LocalBase
    tokenizer: "PreTrainedTokenizerBase"

    def load(self, precision: PrecisionPlan) -> "PreTrainedModel":
        """Base and adapter, ready to answer."""
        return load_adapter(load_base_model(self.base, precision), self.stored)


def bind_adapter(
    stored: StoredAdapter,
    base: LocalBase,
    tokenizer: "PreTrainedTokenizerBase",
    *,
    force: bool = False,
    recompute_digests: bool = False,
    run_template: bool = True,
) -> BoundAdapter:
    """Make sure that base, tokenizer and template are those an adapter was trained with.

    With `recompute_digests` no remembered digest is believed. Without `run_template` the template is compared by
    its digest alone, and the stop ids, which it decides, are not compared. Raises IntegrityError if they are
    others; with `force` that is only told.
    """
    if stored.identity is None:
        logger.warning(
            f"{stored.name} does not say which weights it was trained on; only names and shapes are checked."
        )
        return BoundAdapter(stored, base, tokenizer)
    stops = None if run_template else stored.identity.stops or ()
    found = compute_identity(base, tokenizer, recompute_digests=recompute_digests, stops=stops)
    if not force:
        check_identity(stored.identity, found, stored.name, base)
        if stored.identity.version == 1 and not recompute_digests:  # `verify` has a line of its own
            logger.warning(
                f"{stored.name} was made by an older version; its receipt does not cover {UNCOVERED_BY_VERSION_1}."
            )
    elif changed := list_identity_differences(stored.identity, found, base):
        logger.warning(
            f"{stored.name} was trained with other {' and '.join(changed)}. Its weights are corrections to those it "
            "learned on: on others it may answer worse than the base alone, in another language, or without end, and "
            "none of its figures hold."
        )
    return BoundAdapter(stored, base, tokenizer)
