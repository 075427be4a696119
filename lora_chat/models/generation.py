"""Prompt ids -> replies that stop at the end of the turn."""

from collections.abc import Callable, Collection, Sequence
from typing import TYPE_CHECKING, Any

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
    found = generate_ids(model, int(tokenizer.pad_token_id), prompts, stop_ids, max_new_tokens)
    return [_text(tokenizer, ids) for ids in found]


def generate_ids(
    model: "PreTrainedModel",
    pad: int,
    prompts: Sequence[Sequence[int]],
    stop_ids: Collection[int],
    max_new_tokens: int,
    batch_size: int = 40,
) -> list[list[int]]:
    """Greedy replies to several prompts, left-padded in batches of `batch_size`; stop tokens left out."""
    import torch

    replies: list[list[int]] = []
    for start in range(0, len(prompts), batch_size):
        batch = prompts[start : start + batch_size]
        longest = max(map(len, batch))
        ids = torch.tensor([[pad] * (longest - len(p)) + list(p) for p in batch])
        mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in batch])
        with torch.inference_mode():
            output = model.generate(
                input_ids=ids.to(model.device),
                attention_mask=mask.to(model.device),
                generation_config=_greedy(stop_ids, pad, max_new_tokens),
            )
        replies += [_before_stop(row[longest:].tolist(), stop_ids) for row in output]
    return replies


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
    with torch.inference_mode():
        output = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            generation_config=_greedy(stop_ids, int(tokenizer.pad_token_id), max_new_tokens),
            streamer=streamer,
        )
    return _text(tokenizer, _before_stop(output[0][len(prompt) :].tolist(), stop_ids))


def _greedy(stop_ids: Collection[int], pad: int, max_new_tokens: int) -> Any:
    from transformers import GenerationConfig

    return GenerationConfig(
        do_sample=False, max_new_tokens=max_new_tokens, eos_token_id=list(stop_ids), pad_token_id=pad, use_cache=True
    )


def _before_stop(ids: list[int], stop_ids: Collection[int]) -> list[int]:
    return ids[: next((i for i, token in enumerate(ids) if token in stop_ids), len(ids))]


def _text(tokenizer: "PreTrainedTokenizerBase", ids: list[int]) -> str:
    return str(tokenizer.decode(ids, skip_special_tokens=True)).strip()
