"""New tokens and the rows of embedding and LM head that are trained for single tokens.

PEFT replaces the rows of some tokens (`trainable_token_indices`): in the embedding, and in the LM head, which shares
them or has rows of its own. Without the head's rows a token could be read but never be generated.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from lora_chat.config.adapter_section import AdapterSection
from lora_chat.data.encoding.control_tokens import (
    find_tokens_without_embedding,
    limit_token_ids,
    read_token_limit,
)
from lora_chat.errors import DataError, IntegrityError, RecipeError
from lora_chat.models.adapter_config import LoraSettings
from lora_chat.models.saved_modules import find_embedding_names, has_tied_head, iterate_wrappers

if TYPE_CHECKING:
    import torch
    from peft import PeftModel
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def add_new_tokens(tokenizer: "PreTrainedTokenizerBase", names: Sequence[str]) -> dict[str, int]:
    """Add tokens to a tokenizer, and return their ids. Raise DataError for one that it has already."""
    from tokenizers import AddedToken

    if not names:
        return {}
    vocabulary = tokenizer.get_vocab()
    if known := [name for name in names if name in vocabulary]:
        raise DataError(
            f"adapter.new_tokens: {known[0]!a} is a token of this tokenizer already. Fix: name it in data.keep_tokens "
            "and adapter.trainable_tokens instead."
        )
    if unknown := sorted(find_tokens_without_embedding(tokenizer).values()):
        raise DataError(
            f"adapter.new_tokens: the base has no embedding for {unknown[0]!a}, a token of its tokenizer, so rows for "
            "new tokens would follow a gap. Fix: remove that token, or extend the embedding of the base."
        )
    tokenizer.add_tokens([AddedToken(name, normalized=False, special=False) for name in names])
    ids = {name: int(tokenizer.convert_tokens_to_ids(name)) for name in names}
    if len(set(ids.values()) - set(vocabulary.values())) != len(names):
        raise DataError(
            "adapter.new_tokens: this tokenizer gives new tokens the ids of others. Fix: leave new_tokens out."
        )
    limit = read_token_limit(tokenizer)
    if limit is not None:  # the embedding grows before training
        limit_token_ids(tokenizer, max(limit, *(number + 1 for number in ids.values())))
    return ids


def resolve_token_ids(
    adapter: AdapterSection, tokenizer: "PreTrainedTokenizerBase", new_tokens: Mapping[str, int]
) -> AdapterSection:
    """Return the section with the ids of all tokens whose rows are trained, in place of their texts.

    Raises RecipeError for a token that the tokenizer does not have.
    """
    vocabulary = tokenizer.get_vocab()
    ids = set(new_tokens.values())
    for token in adapter.trainable_tokens or ():
        if isinstance(token, int):
            if token not in vocabulary.values():
                raise RecipeError(f"adapter.trainable_tokens: {token} is not the id of a token of this base.")
            ids.add(token)
        elif token not in vocabulary:
            raise RecipeError(
                f"adapter.trainable_tokens: {token!a} is not a token of this tokenizer. Fix: add and train it with "
                f"adapter.new_tokens: [{token}]."
            )
        else:
            ids.add(vocabulary[token])
    return adapter.model_copy(update={"trainable_tokens": tuple(sorted(ids)) or None})


def place_token_rows(model: "PreTrainedModel", settings: LoraSettings) -> LoraSettings:
    """Return settings whose rows are named for the embedding, and for a head with rows of its own.

    Rows of modules that are trained as a whole are left out. Raises RecipeError if the head has a bias.
    """
    ids = settings.row_ids
    if not ids:
        return settings
    embedding, head = find_embedding_names(model)
    if getattr(model.get_output_embeddings(), "bias", None) is not None and head not in settings.modules_to_save:
        raise RecipeError(
            "adapter.trainable_tokens: the LM head of this base has a bias, which PEFT leaves out for single rows. "
            "Fix: train the whole modules with adapter.modules_to_save."
        )
    names = [embedding] if has_tied_head(model) else [embedding, head]
    names = [name for name in names if name not in settings.modules_to_save]
    return replace(settings, token_rows=tuple((name, ids) for name in names))


def grow_embeddings(model: "PreTrainedModel", new_ids: Collection[int]) -> None:
    """Add rows to embedding and LM head if the base has none for the new tokens, each the mean of the known rows."""
    import torch

    before = model.get_input_embeddings().weight.shape[0]
    if not new_ids or max(new_ids) < before:
        return
    dtype = model.dtype
    model.resize_token_embeddings(max(new_ids) + 1, mean_resizing=False)
    with torch.no_grad():
        for layer in (model.get_input_embeddings(), model.get_output_embeddings()):
            layer.to(dtype)
            layer.weight[before:] = _mean_row(layer.weight, min(*new_ids, before))
    model.requires_grad_(False)


def initialize_new_rows(model: "PeftModel", new_ids: Collection[int]) -> None:
    """Set the trained rows of new tokens to the mean of the rows before them, in the adapter and not in the base."""
    import torch

    if not new_ids:
        return
    num_known = min(new_ids)
    with torch.no_grad():
        for _, wrapper in iterate_wrappers(model):
            adapter = getattr(wrapper, "token_adapter", None)
            if adapter is not None and adapter.tied_adapter is None:
                mean = _mean_row(adapter.base_layer.weight, num_known)
                rows = [adapter.token_indices["default"].index(number) for number in sorted(new_ids)]
                adapter.trainable_tokens_delta["default"][rows] = mean.to(adapter.trainable_tokens_delta["default"])
            elif adapter is None and wrapper.original_module.weight.dim() == 2:
                weight = wrapper.modules_to_save["default"].weight
                weight[sorted(new_ids)] = _mean_row(weight, num_known)


def _mean_row(weight: "torch.Tensor", num_rows: int) -> "torch.Tensor":
    """Return the mean of the first rows of a matrix, computed in fp32."""
    mean: torch.Tensor = weight[:num_rows].float().mean(0).to(weight.dtype)
    return mean


def check_token_rows(model: "PreTrainedModel", settings: LoraSettings, new_ids: Collection[int], name: str) -> None:
    """Raise IntegrityError for rows beyond the embedding, or for new tokens whose rows an adapter does not have."""
    size = model.get_input_embeddings().weight.shape[0]
    if settings.row_ids and max(settings.row_ids) >= size:
        raise IntegrityError(
            f"The adapter {name} does not fit this base: it has a row for the token {max(settings.row_ids)}, and the "
            f"embedding has {size:,} rows. It names no tokens to add."
        )
    if not settings.modules_to_save and set(new_ids) - set(settings.row_ids):
        raise IntegrityError(f"The adapter {name} adds tokens without rows for them.")


def merge_token_rows(model: "PeftModel") -> None:
    """Write the rows of an attached adapter into the base, because PEFT copies the whole matrix for each forward.

    PEFT restores the base's rows while the adapter is disabled, and replaces them in each forward afterwards.
    """
    for _, wrapper in iterate_wrappers(model):
        adapter = getattr(wrapper, "token_adapter", None)
        if adapter is not None and not adapter.merged:
            adapter.merge()
