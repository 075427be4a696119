"""Prompt ids -> replies that stop at the end of the turn, in batches whose keys and values fit the limit."""

import logging
import math
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from lora_chat.config.generation_section import GREEDY, GenerationSection
from lora_chat.errors import RecipeError
from lora_chat.inference.batch_support import find_batch_support
from lora_chat.inference.sampler import make_processors
from lora_chat.inference.text_decoder import TextDecoder
from lora_chat.models.shape import ModelShape, read_kv_sizes, read_shape
from lora_chat.system.activity import note_activity
from lora_chat.system.gpu_memory import release_gpu_memory
from lora_chat.system.memory_limit import is_out_of_memory

if TYPE_CHECKING:
    from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

MAX_BATCH_SIZE = 40
"""Number of prompts that are answered together."""
KV_CACHE_LIMIT_BYTES = 2**29
"""Size of the keys and values of prompts that are answered together, in bytes."""


def kv_cache_bytes_per_token(shape: ModelShape, bytes_per_value: int) -> int:
    """Return the bytes of one token's keys and values in all layers."""
    return 2 * bytes_per_value * shape.kv_size * shape.num_layers


def generation_batch_size(shape: ModelShape, tokens: int, bytes_per_value: int) -> int:
    """Return the number of prompts that are answered together if each takes `tokens` with its reply."""
    return batch_size_for_cache(tokens * kv_cache_bytes_per_token(shape, bytes_per_value))


def batch_size_for_cache(bytes_per_prompt: int) -> int:
    """Return the number of prompts that are answered together if the keys and values of each take these bytes."""
    return max(1, min(MAX_BATCH_SIZE, KV_CACHE_LIMIT_BYTES // max(1, bytes_per_prompt)))


def generate_replies(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    prompts: Sequence[Sequence[int]],
    stop_ids: Sequence[int],
    max_new_tokens: int,
    generation: GenerationSection = GREEDY,
) -> list[str]:
    """Return replies to several prompts as text."""
    pad = int(tokenizer.pad_token_id)
    replies = generate_ids(model, pad, prompts, stop_ids, max_new_tokens, generation=generation)
    return [decode_reply(tokenizer, ids) for ids in replies]


def generate_ids(
    model: "PreTrainedModel",
    pad: int,
    prompts: Sequence[Sequence[int]],
    stop_ids: Collection[int],
    max_new_tokens: int,
    batch_size: int | None = None,
    generation: GenerationSection = GREEDY,
    numbers: Sequence[int] | None = None,
) -> list[list[int]]:
    """Return replies to several prompts as ids, without stop tokens. Batches are left-padded.

    The default of `batch_size` is MAX_BATCH_SIZE, or fewer if keys and values would exceed KV_CACHE_LIMIT_BYTES. A GPU
    that runs out of memory gets batches of half the size. Sampling draws from the seed and the number of a prompt,
    which is its position unless `numbers` are given.
    """
    numbers = range(len(prompts)) if numbers is None else numbers
    if len(prompts) > 1 and not find_batch_support(model, pad, prompts[0]).pads:
        return _generate_by_length(model, pad, prompts, stop_ids, max_new_tokens, batch_size, generation, numbers)
    replies: list[list[int]] = []
    max_prompt_length = max(map(len, prompts), default=0)
    batch_size = batch_size or _choose_batch_size(model, max_prompt_length + max_new_tokens)
    while len(replies) < len(prompts):
        part = slice(len(replies), len(replies) + batch_size)
        batch = prompts[part]
        try:
            replies += _generate_batch(model, pad, batch, stop_ids, max_new_tokens, generation, numbers[part])
            note_activity()
            continue
        except Exception as error:
            if len(batch) == 1 or model.device.type == "cpu" or not is_out_of_memory(error):
                raise
        # After the `except` block nothing refers to the error, whose frames refer to the keys and values.
        release_gpu_memory()
        batch_size = len(batch) // 2
        logger.info(f"The GPU ran out of memory for {len(batch)} replies together; continuing with {batch_size}.")
    return replies


def _generate_by_length(
    model: "PreTrainedModel",
    pad: int,
    prompts: Sequence[Sequence[int]],
    stop_ids: Collection[int],
    max_new_tokens: int,
    batch_size: int | None,
    generation: GenerationSection,
    numbers: Sequence[int],
) -> list[list[int]]:
    """Return replies of a model that would read padding as text: prompts of one length at a time."""
    batch_size = batch_size or _choose_batch_size(model, max(map(len, prompts)) + max_new_tokens)
    replies: list[list[int]] = [[] for _ in prompts]
    for batch in _batch_by_length(prompts, batch_size):
        chosen, seeds = [prompts[i] for i in batch], [numbers[i] for i in batch]
        answers = _generate_batch(model, pad, chosen, stop_ids, max_new_tokens, generation, seeds)
        note_activity()
        for index, answer in zip(batch, answers, strict=True):
            replies[index] = answer
    return replies


def plan_batches(
    model: "PreTrainedModel", pad: int, prompts: Sequence[Sequence[int]], max_new_tokens: int
) -> list[list[int]]:
    """Return the numbers of the prompts that `generate_ids` answers together, if a GPU does not run out of memory."""
    batch_size = _choose_batch_size(model, max(map(len, prompts), default=0) + max_new_tokens)
    if len(prompts) > 1 and not find_batch_support(model, pad, prompts[0]).pads:
        return _batch_by_length(prompts, batch_size)
    return _divide(range(len(prompts)), batch_size)


def _batch_by_length(prompts: Sequence[Sequence[int]], batch_size: int) -> list[list[int]]:
    """Return the numbers of prompts that have one length, the shortest first."""
    same_lengths = [
        [number for number, prompt in enumerate(prompts) if len(prompt) == length]
        for length in sorted({len(prompt) for prompt in prompts})
    ]
    return [batch for numbers in same_lengths for batch in _divide(numbers, batch_size)]


def _divide(numbers: Sequence[int], size: int) -> list[list[int]]:
    """Return the numbers in lists of at most `size`."""
    return [[*numbers[begin : begin + size]] for begin in range(0, len(numbers), size)]


def _generate_batch(
    model: "PreTrainedModel",
    pad: int,
    batch: Sequence[Sequence[int]],
    stop_ids: Collection[int],
    max_new_tokens: int,
    generation: GenerationSection,
    numbers: Sequence[int],
) -> list[list[int]]:
    """Return replies to prompts that are answered together; `numbers` are the seeds of their samples."""
    import torch

    support = find_batch_support(model, pad, batch[0])
    longest = max(map(len, batch))
    # Padding on the left lets all prompts end at the same position, where generation begins.
    ids = torch.tensor([[pad] * (longest - len(p)) + list(p) for p in batch])
    mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in batch])
    with torch.inference_mode(), contiguous_hidden_states(model), without_base_settings(model):
        output = model.generate(
            input_ids=ids.to(model.device),
            attention_mask=mask.to(model.device),
            generation_config=greedy_config(stop_ids, pad, max_new_tokens, support.caches),
            logits_processor=make_processors(generation, numbers),
        )
    return [_cut_at_stop_token(row[longest:].tolist(), stop_ids) for row in output]


@contextmanager
def contiguous_hidden_states(model: "PreTrainedModel") -> Iterator[None]:
    """Copy the input of the LM head into contiguous memory until the block ends.

    Transformers passes the last states of the prompts as a slice. PyTorch multiplies such a slice batch by batch, and
    on a CPU copies the head's weights each time: 2.3 GB and two seconds for 40 prompts of a base of 135M. The slice of
    one prompt reports that it is contiguous, but `matmul` looks at its strides: 0.65 s for one prompt of 1.2 billion
    weights.
    """
    import torch

    head: torch.nn.Module = model.get_output_embeddings()
    hook = head.register_forward_pre_hook(
        lambda module, inputs: (inputs[0].clone(memory_format=torch.contiguous_format), *inputs[1:])
    )
    try:
        yield
    finally:
        hook.remove()


@contextmanager
def without_base_settings(model: "PreTrainedModel") -> Iterator[None]:
    """Ignore the generation settings of the base until the block ends, so that replies are greedy without penalties.

    Transformers takes every field that a call leaves unset from the model, such as `repetition_penalty`.
    """
    from transformers import GenerationConfig

    inner = getattr(model, "get_base_model", lambda: model)()
    models = [part for part in (model, inner) if "generation_config" in vars(part)]
    before = [part.generation_config for part in models]
    for part in models:
        part.generation_config = GenerationConfig()
    try:
        yield
    finally:
        for part, settings in zip(models, before, strict=True):
            part.generation_config = settings


def _choose_batch_size(model: "PreTrainedModel", tokens: int) -> int:
    """Return the batch size for prompts of `tokens` with their replies."""
    config = model.config.get_text_config().to_dict()
    try:
        shape = read_shape(config, "")
    except RecipeError:  # an architecture without a known shape
        return batch_size_for_cache(tokens * 2 * model.dtype.itemsize * math.prod(read_kv_sizes(config)))
    return generation_batch_size(shape, tokens, model.dtype.itemsize)


def stream_reply(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    prompt: Sequence[int],
    stop_ids: Sequence[int],
    max_new_tokens: int,
    write: Callable[[str], None],
    generation: GenerationSection = GREEDY,
    number: int = 0,
    *,
    continues_text: bool = False,
) -> str:
    """Return the reply to one prompt, and pass its text to `write` piece by piece while it is generated.

    Sampling draws from the seed and `number`. A reply that continues a plain text keeps the blanks at its ends. A
    KeyboardInterrupt is passed on; the pieces that were written before it remain.
    """
    import torch
    from transformers import TextStreamer

    class Streamer(TextStreamer):
        def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
            if text:
                write(text)

    decoder = TextDecoder(tokenizer, prompt if continues_text else ())
    streamer = Streamer(decoder, skip_prompt=True)
    pad = int(tokenizer.pad_token_id)
    support = find_batch_support(model, pad, prompt)
    ids = torch.tensor([list(prompt)], device=model.device)
    with torch.inference_mode(), contiguous_hidden_states(model), without_base_settings(model):
        output = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            generation_config=greedy_config(stop_ids, pad, max_new_tokens, support.caches),
            streamer=streamer,
            logits_processor=make_processors(generation, [number]),
        )
    text = decoder.decode(_cut_at_stop_token(output[0][len(prompt) :].tolist(), stop_ids))
    return text if continues_text else text.strip()


def greedy_config(
    stop_ids: Collection[int], pad_token_id: int, max_new_tokens: int, use_cache: bool
) -> "GenerationConfig":
    """Return the generation settings of a greedy reply; a sampled one is greedy after its noise."""
    from transformers import GenerationConfig

    return GenerationConfig(
        do_sample=False,
        num_beams=1,
        max_new_tokens=max_new_tokens,
        eos_token_id=list(stop_ids),
        pad_token_id=pad_token_id,
        use_cache=use_cache,
    )


def _cut_at_stop_token(ids: list[int], stop_ids: Collection[int]) -> list[int]:
    """Return the ids before the first stop token."""
    return ids[: next((i for i, token in enumerate(ids) if token in stop_ids), len(ids))]


def decode_reply(tokenizer: "PreTrainedTokenizerBase", ids: list[int]) -> str:
    """Return the text of a reply without special tokens."""
    return TextDecoder(tokenizer).decode(ids).strip()


def decode_continuation(tokenizer: "PreTrainedTokenizerBase", prompt: Sequence[int], ids: Sequence[int]) -> str:
    """Return the text with which ids continue a prompt, with the blanks at its ends."""
    return TextDecoder(tokenizer, prompt).decode(ids)
