"""The tokens of a recipe or of an adapter, installed in the tokenizer of its base."""

from collections.abc import Collection
from typing import TYPE_CHECKING

from lora_chat.config.plan import Plan
from lora_chat.data.encoding.kept_tokens import keep_tokens
from lora_chat.data.encoding.ordinary_tokens import use_token_rule
from lora_chat.errors import DataError, IntegrityError
from lora_chat.models.adapter_config import StoredAdapter
from lora_chat.models.base_model import LocalBase
from lora_chat.models.stop_tokens import read_stop_ids
from lora_chat.models.token_rows import add_new_tokens

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def install_recipe_tokens(plan: Plan, tokenizer: "PreTrainedTokenizerBase", stop_ids: Collection[int]) -> None:
    """Add the new tokens of a plan to a tokenizer, and keep them and others in message text. Raise DataError."""
    new_tokens = add_new_tokens(tokenizer, plan.adapter.new_tokens or ())
    keep_tokens(tokenizer, [*(plan.data.keep_tokens or ()), *new_tokens], stop_ids)


def read_new_tokens(tokenizer: "PreTrainedTokenizerBase", plan: Plan) -> dict[str, int]:
    """Return the new tokens of a plan with their ids in a tokenizer that has them."""
    return {name: int(tokenizer.convert_tokens_to_ids(name)) for name in plan.adapter.new_tokens or ()}


def install_trained_tokens(
    stored: StoredAdapter, base: LocalBase, tokenizer: "PreTrainedTokenizerBase", *, run_template: bool
) -> None:
    """Add and keep the tokens of training, and read added tokens by its rule.

    Raises IntegrityError for a token that does not fit the base.
    """
    identity = stored.identity
    if identity is not None and identity.token_rule is None:
        use_token_rule(tokenizer, 1)
    if identity is None or not (identity.kept_tokens or identity.new_tokens):
        return
    stated_ids = identity.new_tokens or {}
    stop_ids = read_stop_ids(base, tokenizer) if run_template else identity.stops or ()
    try:
        ids = add_new_tokens(tokenizer, sorted(stated_ids, key=lambda name: stated_ids[name]))
        keep_tokens(tokenizer, identity.kept_tokens or (), stop_ids, run_template=run_template)
    except DataError as error:
        raise IntegrityError(f"{stored.name} has tokens that do not fit this base ({error}).") from error
    if ids != stated_ids:
        wrong = next(name for name in ids if ids[name] != stated_ids[name])
        raise IntegrityError(
            f"{stored.name} was trained with the token {wrong!a} as {stated_ids[wrong]}, and here it is {ids[wrong]}: "
            "the tokenizer of this base is another one."
        )
