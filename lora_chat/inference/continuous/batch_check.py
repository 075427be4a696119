"""Check when a model is loaded whether its requests can share steps, and whether replies then have the same bits."""

import logging
import random
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from transformers import GenerationConfig

from lora_chat.inference.batch_support import relative_difference, rounding_tolerance
from lora_chat.inference.continuous.batched_model import BatchedModel, DecodeRow, UnbatchableError
from lora_chat.inference.continuous.token_pool import TokenPool
from lora_chat.inference.generation import contiguous_hidden_states, without_base_settings
from lora_chat.models.quantization.dequantize import is_int8_linear
from lora_chat.system.memory_limit import is_out_of_memory

if TYPE_CHECKING:
    from transformers import PreTrainedModel

logger = logging.getLogger(__name__)

_PROMPT_LENGTHS = (5, 19, 33)
_NUM_STEPS = 3
_SHARED_LENGTHS = (39, 103, 171)
"""Lengths of prompts that begin alike, of which no last block is complete."""
_COMMON_TOKENS = 16
_MAX_SHARED_PROMPT = 191
"""Longest prompt that PyTorch's attention on a CPU divides into blocks of 32 tokens whatever its length."""
_LENGTH_DEPENDENT_ROPE = ("dynamic", "longrope")
"""Kinds of rotary positions that depend on the longest sequence of a step."""


@dataclass(frozen=True)
class BatchCheck:
    """The result of the check."""

    reason: str = ""
    """Why requests cannot share steps; empty if they can."""
    is_exact: bool = True
    """Whether the logits of a shared step have the bits of a step with one request."""
    bytes_per_token: int = 0
    """Memory of the keys and values of one token, in bytes."""
    shares_prompts: bool = False
    """Whether a prompt can be read from any token on."""
    max_shared_prompt: int = 0
    """Length of the longest prompts that can share their beginnings with the same bits."""


def check_batching(batched: BatchedModel, model: "PreTrainedModel", pad: int) -> BatchCheck:
    """Compare replies to several short prompts in shared steps with those of plain generation."""
    if reason := _find_obstacle(model):
        return BatchCheck(reason, is_exact=True)
    prompts = _make_prompts(model)
    expected = [_generate(model, pad, prompt) for prompt in prompts]
    pool = batched.pool = TokenPool(sum(len(prompt) + _NUM_STEPS for prompt in prompts))
    try:
        actual = _generate_together(batched, prompts, [ids for ids, _ in expected])
    except UnbatchableError as error:
        return BatchCheck(str(error))
    except Exception as error:  # code of a model that does not take these arguments
        if is_out_of_memory(error):
            raise
        logger.debug("Shared steps failed.", exc_info=True)
        return BatchCheck(f"its code does not take several requests at different positions ({type(error).__name__})")
    differences = [
        relative_difference(row, logits[step])
        for step, rows in enumerate(actual)
        for row, (_, logits) in zip(rows, expected, strict=True)
    ]
    # Libraries of a GPU choose kernels by the number of rows, which a few prompts do not show.
    is_exact = not batched.is_on_gpu and all(
        torch.equal(row, logits[step])
        for step, rows in enumerate(actual)
        for row, (_, logits) in zip(rows, expected, strict=True)
    )
    if max(differences) > rounding_tolerance(model):
        return BatchCheck("a request's logits depend on the requests beside it")
    layers = [*pool.keys.values(), *pool.values.values()]
    shares_prompts, is_same = _check_sharing(batched, model, pad)
    return BatchCheck(
        "",
        is_exact,
        sum(layer[0].nbytes for layer in layers),
        shares_prompts,
        (min(_MAX_SHARED_PROMPT, (batched.smallest_window or _MAX_SHARED_PROMPT + 1) - 1)) if is_same else 0,
    )


def _check_sharing(batched: BatchedModel, model: "PreTrainedModel", pad: int) -> tuple[bool, bool]:
    """Return whether prompts can be read from any token on, and whether shared beginnings have the same bits."""
    if model.config.get_text_config()._attn_implementation != "sdpa":
        return False, False  # another function needs a mask
    if any(map(is_int8_linear, model.modules())):
        return False, False  # a row of LLM.int8 depends on the other rows of the prompt
    short, longer, longest = (_make_prompt(model, length) for length in _SHARED_LENGTHS)
    second = [*short[:_COMMON_TOKENS], *longer[_COMMON_TOKENS:]]
    third = [*second[: 5 * _COMMON_TOKENS], *longest[5 * _COMMON_TOKENS :]]
    pool = batched.pool = TokenPool(sum(_SHARED_LENGTHS))
    ranges = [pool.allocate(length) for length in _SHARED_LENGTHS]
    tokens = [chosen for chosen in ranges if chosen is not None]
    try:
        batched.read(short, None, tokens[0])
        pool.copy(tokens[0].begin, tokens[1].begin, _COMMON_TOKENS)
        logits = [batched.read_rest(second, None, tokens[1], _COMMON_TOKENS)]
        pool.copy(tokens[1].begin, tokens[2].begin, 5 * _COMMON_TOKENS)
        logits.append(batched.read_rest(third, None, tokens[2], 5 * _COMMON_TOKENS))
        keys = {layer: states[tokens[2].begin : tokens[2].end].clone() for layer, states in pool.keys.items()}
        expected = [batched.read(second, None, tokens[1]), batched.read(third, None, tokens[2])]
    except Exception as error:  # code of a model that does not take these arguments
        if is_out_of_memory(error):
            raise
        return False, False
    if any(relative_difference(*pair) > rounding_tolerance(model) for pair in zip(logits, expected, strict=True)):
        return False, False
    is_same = all(torch.equal(*pair) for pair in zip(logits, expected, strict=True))
    span = slice(tokens[2].begin, tokens[2].end)
    return True, is_same and all(torch.equal(keys[layer], states[span]) for layer, states in pool.keys.items())


def _find_obstacle(model: "PreTrainedModel") -> str:
    """Return what the model is that prevents shared steps; empty if nothing is known."""
    config = model.config.get_text_config()
    if not model._can_set_attn_implementation():
        return "its attention cannot be replaced"
    if config._attn_implementation not in ("sdpa", "eager"):
        return f"its attention is {config._attn_implementation}"
    if getattr(config, "num_kv_shared_layers", 0):
        return "some of its layers share keys and values"
    rope = getattr(config, "rope_parameters", None) or {}
    kinds = [rope, *(value for value in rope.values() if isinstance(value, dict))]
    if any(kind.get("rope_type") in _LENGTH_DEPENDENT_ROPE for kind in kinds):
        return "its rotary positions depend on the length of the longest sequence"
    return ""


def _make_prompts(model: "PreTrainedModel") -> list[list[int]]:
    """Return prompts of several lengths."""
    return [_make_prompt(model, length) for length in _PROMPT_LENGTHS]


def _make_prompt(model: "PreTrainedModel", length: int) -> list[int]:
    """Return random tokens without those for pictures and sound."""
    config = model.config
    special = {value for key, value in config.to_dict().items() if key.endswith(("_id", "_index"))} | {None}
    ids = [token for token in range(min(model.get_input_embeddings().weight.shape[0], 5000)) if token not in special]
    source = random.Random(length)
    return [source.choice(ids) for _ in range(length)]


def _generate(model: "PreTrainedModel", pad: int, prompt: list[int]) -> tuple[list[int], list[torch.Tensor]]:
    """Return the ids of a greedy reply and the logits (vocabulary,) of its steps."""
    settings = GenerationConfig(do_sample=False, num_beams=1, max_new_tokens=_NUM_STEPS, use_cache=True)
    settings.pad_token_id = pad
    settings.output_logits = settings.return_dict_in_generate = True
    ids = torch.tensor([prompt], device=model.device)
    with torch.inference_mode(), contiguous_hidden_states(model), without_base_settings(model):
        output = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), generation_config=settings)
    return output.sequences[0, len(prompt) :].tolist(), [logits[0] for logits in output.logits]


def _generate_together(
    batched: BatchedModel, prompts: list[list[int]], replies: list[list[int]]
) -> list[list[torch.Tensor]]:
    """Return the logits of each step and prompt if the replies are given."""
    ranges = [batched.pool.allocate(len(prompt) + _NUM_STEPS) for prompt in prompts]
    tokens = [chosen for chosen in ranges if chosen is not None]
    steps = [[batched.read(prompt, None, chosen) for prompt, chosen in zip(prompts, tokens, strict=True)]]
    for step in range(_NUM_STEPS - 1):
        rows = [
            DecodeRow(reply[step], len(prompt) + step, chosen, None)
            for prompt, reply, chosen in zip(prompts, replies, tokens, strict=True)
        ]
        steps.append(list(batched.decode(rows)))
    return steps
