"""Check whether a model's replies are the same with a cache, and in a batch with shorter prompts.

Recurrent models (RWKV, xLSTM) read the padding before a shorter prompt as if it were text.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

from lora_chat.models.architectures import find_architecture
from lora_chat.system.memory_limit import is_out_of_memory

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

_MAX_SAMPLE_TOKENS = 32
_NUM_STEPS = 3
"""Tokens that are generated to compare a cache with the whole row."""
_MAX_DIFFERENCE = 0.15
"""Largest relative difference of logits that rounding in 16 bits explains."""
_MAX_DIFFERENCE_FLOAT32 = 0.01
_MAX_EXPERT_ROUNDING = 0.02
"""Largest relative difference of logits because padding changes the sizes of the experts' products."""


@dataclass(frozen=True)
class BatchSupport:
    """The ways in which a model can generate."""

    caches: bool = True
    """Whether the states of earlier tokens can be kept."""
    pads: bool = True
    """Whether prompts of several lengths can be answered together."""


_CHECKED: "WeakKeyDictionary[PreTrainedModel, BatchSupport]" = WeakKeyDictionary()
"""Results of the check, for each model in memory."""


def find_batch_support(model: "PreTrainedModel", pad: int, prompt: Sequence[int]) -> BatchSupport:
    """Return how a model can generate, checked once on a prompt. The architectures of the table pass their tests."""
    if find_architecture(model.config.model_type).layer_family or len(prompt) < 2:
        return BatchSupport()
    if model not in _CHECKED:
        sample = list(prompt[-_MAX_SAMPLE_TOKENS:])
        caches = _runs(lambda: _matches_without_cache(model, pad, sample))
        _CHECKED[model] = BatchSupport(caches, _runs(lambda: _ignores_padding(model, pad, sample, caches=caches)))
    return _CHECKED[model]


def _runs(check: Callable[[], bool]) -> bool:
    """Return the result of a check, or False if the model's code fails, except for lack of memory."""
    try:
        return check()
    except Exception as error:
        if is_out_of_memory(error):
            raise
        return False


def _matches_without_cache(model: "PreTrainedModel", pad: int, prompt: Sequence[int]) -> bool:
    """Return whether generated logits equal those of the whole row without a cache."""
    ids, logits = _generate(model, pad, [prompt], caches=True, num_steps=_NUM_STEPS)
    _, expected = _generate(model, pad, [ids[0, :-1].tolist()], caches=False, num_steps=1)
    return relative_difference(logits[-1][0], expected[0][0]) <= rounding_tolerance(model)


def _ignores_padding(model: "PreTrainedModel", pad: int, prompt: Sequence[int], *, caches: bool) -> bool:
    """Return whether the logits after a short prompt do not depend on a longer one, and not on the id of the padding.

    The second comparison is exact, because both batches have the same shape. It finds what rounding would hide.
    """
    short = prompt[len(prompt) // 2 :]
    steps = 2 if caches else 1

    def after_short(padding: int) -> "list[torch.Tensor]":
        return [step[1] for step in _generate(model, padding, [prompt, short], caches=caches, num_steps=steps)[1]]

    padded, other = after_short(pad), after_short(prompt[0])
    alone = _generate(model, pad, [short], caches=caches, num_steps=1)[1][0][0]
    has_experts = any("expert" in type(module).__name__.lower() for module in model.modules())
    limit = _MAX_EXPERT_ROUNDING if has_experts else 0.0
    if relative_difference(padded[0], alone) > rounding_tolerance(model):
        return False
    return all(relative_difference(first, second) <= limit for first, second in zip(padded, other, strict=True))


def _generate(
    model: "PreTrainedModel", pad: int, prompts: Sequence[Sequence[int]], *, caches: bool, num_steps: int
) -> "tuple[torch.Tensor, tuple[torch.Tensor, ...]]":
    """Return the ids and the logits (rows, vocabulary) of each step, for prompts that are padded on the left."""
    import torch
    from transformers import GenerationConfig

    longest = max(map(len, prompts))
    ids = torch.tensor([[pad] * (longest - len(prompt)) + list(prompt) for prompt in prompts])
    mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    settings = GenerationConfig(do_sample=False, num_beams=1, max_new_tokens=num_steps, use_cache=caches)
    settings.pad_token_id = pad
    settings.output_logits = settings.return_dict_in_generate = True
    with torch.inference_mode():
        output = model.generate(
            input_ids=ids.to(model.device), attention_mask=mask.to(model.device), generation_config=settings
        )
    return output.sequences, output.logits


def relative_difference(actual: "torch.Tensor", expected: "torch.Tensor") -> float:
    """Return the norm of the difference, relative to the spread of the expected values; infinity if non-finite."""
    actual, expected = actual.float(), expected.float()
    difference = float((actual - expected).norm() / (expected - expected.mean()).norm())
    return difference if difference == difference else float("inf")


def rounding_tolerance(model: "PreTrainedModel") -> float:
    """Return the largest relative difference that rounding explains."""
    import torch

    return _MAX_DIFFERENCE_FLOAT32 if model.dtype == torch.float32 else _MAX_DIFFERENCE
