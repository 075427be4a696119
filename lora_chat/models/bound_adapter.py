"""An adapter together with its base and tokenizer: everything that a chat needs, without loaded weights."""

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
    """An adapter, its base, and the tokenizer with the chat template of training."""

    stored: StoredAdapter
    base: LocalBase
    tokenizer: "PreTrainedTokenizerBase"

    def load(self, precision: PrecisionPlan) -> "PreTrainedModel":
        """Load the weights of the base and the adapter."""
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
    """Check that an adapter was trained with this base, tokenizer and template, and return them together.

    With `recompute_digests`, cached digests are ignored. Without `run_template`, the template is compared only by its
    digest, and the stop ids, which depend on it, are not compared. Raises IntegrityError for a difference; `force`
    logs it instead.
    """
    if stored.identity is None:
        logger.warning(f"{stored.name} does not name the weights it was trained on; only names and shapes are checked.")
        return BoundAdapter(stored, base, tokenizer)
    stops = None if run_template else stored.identity.stops or ()
    identity = compute_identity(base, tokenizer, recompute_digests=recompute_digests, stops=stops)
    if not force:
        check_identity(stored.identity, identity, stored.name, base)
        if stored.identity.version == 1 and not recompute_digests:  # `verify` prints its own line
            logger.warning(
                f"{stored.name} was made by an older version; its receipt does not cover {UNCOVERED_BY_VERSION_1}."
            )
    elif changed := list_identity_differences(stored.identity, identity, base):
        logger.warning(
            f"{stored.name} was trained with other {' and '.join(changed)}. An adapter corrects the weights that it "
            "was trained on: with other weights its replies may be worse than the base's, in another language, or "
            "endless, and its measured figures do not apply."
        )
    return BoundAdapter(stored, base, tokenizer)
