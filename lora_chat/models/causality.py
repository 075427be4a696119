"""Checks that a base is a causal language model, in which no token sees a later one.

Transformers also builds encoders (BERT) and decoders of translation models (BART, Whisper) as causal language models.
An encoder's loss falls in training, because each token sees the reply that it should predict; its replies are noise.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from lora_chat.errors import UnavailableError

if TYPE_CHECKING:
    import torch
    from transformers import PretrainedConfig, PreTrainedModel

_MAX_SAMPLE_TOKENS = 48
_MAX_SHARE = 0.5
"""Largest effect of later tokens on earlier logits, as a share of the effect of earlier tokens on later logits.

Both effects are of the same size in an encoder. In a decoder the first is zero, or what 8-bit activations round.
"""
_FIX = "Fix: choose a base that was trained to generate text, such as the models that chat."


def check_causal_config(config: "PretrainedConfig", base: str) -> None:
    """Raise UnavailableError for the config of an encoder, or of a model with encoder and decoder."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

    text_config = config.get_text_config(decoder=True)
    if getattr(config, "is_encoder_decoder", False):
        raise UnavailableError(
            f"The base {base} ({config.model_type}) has an encoder and a decoder; lora_chat trains models that have "
            f"only a decoder.\n{_FIX}"
        )
    is_decoder = getattr(text_config, "is_decoder", False) or getattr(text_config, "causal", False)
    if text_config.model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES and not is_decoder:
        raise UnavailableError(
            f"The base {base} ({text_config.model_type}) is an encoder: each token sees the later ones, so it cannot "
            f"generate text.\n{_FIX}"
        )


def check_causality(model: "PreTrainedModel", ids: Sequence[int], base: str) -> None:
    """Raise UnavailableError if later tokens change earlier logits. `ids` are the tokens of any dialogue."""
    import torch

    sample = list(ids[:_MAX_SAMPLE_TOKENS])
    half = len(sample) // 2
    if half < 1:
        return
    other_end = sample[:half] + sample[:half:-1] + sample[:1]
    other_start = sample[half - 1 :: -1] + sample[half:]
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            logits, with_other_end, with_other_start = (_logits(model, row) for row in (sample, other_end, other_start))
    finally:
        model.train(was_training)
    backward = float((logits - with_other_end)[:half].norm() / logits[:half].norm())
    forward = float((logits - with_other_start)[half:].norm() / logits[half:].norm())
    if backward > _MAX_SHARE * forward:
        raise UnavailableError(
            f"The base {base} is not a causal language model: other tokens at the end change the logits of the tokens "
            f"before them by {backward:.1%}, so its loss would not be that of the replies.\n{_FIX}"
        )


def _logits(model: "PreTrainedModel", row: Sequence[int]) -> "torch.Tensor":
    """Return the logits (tokens, vocabulary) of one row in fp32."""
    import torch

    input_ids = torch.tensor([row], device=model.device)
    result: torch.Tensor = model(input_ids=input_ids, use_cache=False).logits[0].float()
    return result
