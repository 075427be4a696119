"""Prompt ids -> replies that stop at the end of the turn."""

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from lora_chat.errors import RecipeError
from lora_chat.inference.batching import MAX_BATCH_SIZE, generation_batch_size
from lora_chat.models.shape import read_shape

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def generate_replies(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    prompts: Sequence[Sequence[int]],
    stop_ids: Sequence[int],
    max_new_tokens: int,
) -> list[str]:
    """Greedy replies to several prompts as text."""
    replies = generate_ids(model, int(tokenizer.pad_token_id), prompts, stop_ids, max_new_tokens)
    return [_decode_reply(tokenizer, ids) for ids in replies]


def generate_ids(
    model: "PreTrainedModel",
    pad: int,
    prompts: Sequence[Sequence[int]],
    stop_ids: Collection[int],
    max_new_tokens: int,
    batch_size: int | None = None,
) -> list[list[int]]:
    """Greedy replies to several prompts, left-padded in batches of `batch_size`; stop tokens left out.

    By default 40, and fewer where their keys and values would take more than half a GiB.
    """
    import torch

    replies: list[list[int]] = []
    max_prompt_length = max(map(len, prompts), default=0)
    batch_size = batch_size or _choose_batch_size(model, max_prompt_length + max_new_tokens)
    for start in range(0, len(prompts), batch_size):
        batch = prompts[start : start + batch_size]
        longest = max(map(len, batch))
        ids = torch.tensor([[pad] * (longest - len(p)) + list(p) for p in batch])
        mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in batch])
        with torch.inference_mode(), _contiguous_hidden_states(model):
            output = model.generate(
                input_ids=ids.to(model.device),
                attention_mask=mask.to(model.device),
                generation_config=_greedy_config(stop_ids, pad, max_new_tokens),
            )
        replies += [_cut_at_stop_token(row[longest:].tolist(), stop_ids) for row in output]
    return replies


@contextmanager
def _contiguous_hidden_states(model: Any) -> Iterator[None]:
    """Have the head get its states in one piece.

    The last states of prompts are slices of theirs. For these PyTorch multiplies batch by batch, and on a CPU copies
    the head's weights for each: 2.3 GB and two seconds for 40 prompts of a base of 135M. The slice of one prompt calls
    itself contiguous, yet `matmul` goes by its strides: 0.65 s for one prompt of 1.2 billion weights.
    """
    import torch

    head = model.get_output_embeddings()
    hook = head.register_forward_pre_hook(
        lambda module, inputs: (inputs[0].clone(memory_format=torch.contiguous_format), *inputs[1:])
    )
    try:
        yield
    finally:
        hook.remove()


def _choose_batch_size(model: "PreTrainedModel", tokens: int) -> int:
    try:
        shape = read_shape(model.config.get_text_config().to_dict(), "")
    except RecipeError:  # of an architecture that no plan knows
        return MAX_BATCH_SIZE
    return generation_batch_size(shape, tokens, model.dtype.itemsize)


def stream_reply(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    prompt: Sequence[int],
    stop_ids: Sequence[int],
    max_new_tokens: int,
    write: Callable[[str], None],
) -> str:
    """Greedy reply to one prompt; `write` gets the text piece by piece as soon as it is certain.

    KeyboardInterrupt while it streams passes through: what was written by then has been written.
    """
    import torch
    from transformers import TextStreamer

    class Streamer(TextStreamer):
        def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
            if text:
                write(text)

    streamer = Streamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
    ids = torch.tensor([list(prompt)], device=model.device)
    with torch.inference_mode(), _contiguous_hidden_states(model):
        output = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            generation_config=_greedy_config(stop_ids, int(tokenizer.pad_token_id), max_new_tokens),
            streamer=streamer,
        )
    return _decode_reply(tokenizer, _cut_at_stop_token(output[0][len(prompt) :].tolist(), stop_ids))


def _greedy_config(stop_ids: Collection[int], pad_token_id: int, max_new_tokens: int) -> Any:
    from transformers import GenerationConfig

    return GenerationConfig(
        do_sample=False,
        num_beams=1,
        max_new_tokens=max_new_tokens,
        eos_token_id=list(stop_ids),
        pad_token_id=pad_token_id,
        use_cache=True,
    )


def _cut_at_stop_token(ids: list[int], stop_ids: Collection[int]) -> list[int]:
    return ids[: next((i for i, token in enumerate(ids) if token in stop_ids), len(ids))]


def _decode_reply(tokenizer: "PreTrainedTokenizerBase", ids: list[int]) -> str:
    return str(tokenizer.decode(ids, skip_special_tokens=True)).strip()
