"""A model that is open in transformers, asked what a proof asks."""

from collections.abc import Callable, Collection, Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from lora_chat.data.encoding.chat_template import render_ids
from lora_chat.export.parity.compare import measure_distance
from lora_chat.export.parity.outputs import ParityOutputs, ParityRunner, collect_outputs
from lora_chat.export.parity.samples import ParitySample
from lora_chat.inference.generation import generate_ids

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class TransformersRunner(ParityRunner):
    """A model with a tokenizer of its own: what was written beside it, or, for the adapted one, that of training."""

    def __init__(self, model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase") -> None:
        self._model = model.eval()
        self._tokenizer = tokenizer

    @property
    def name(self) -> str:
        import transformers

        return f"transformers {transformers.__version__}"

    def logits(self, ids: Sequence[int], positions: Sequence[int]) -> "torch.Tensor":
        import torch

        device = self._model.device
        with torch.inference_mode():
            output = self._model(
                input_ids=torch.tensor([list(ids)], device=device),
                logits_to_keep=torch.tensor(list(positions), device=device),
                use_cache=False,
            )
        return output.logits[0].float().cpu()  # type: ignore[no-any-return]

    def replies(
        self, prompts: Sequence[Sequence[int]], stop_ids: Collection[int], max_new_tokens: int
    ) -> list[list[int]]:
        return generate_ids(self._model, int(self._tokenizer.pad_token_id), prompts, stop_ids, max_new_tokens)

    def mismatches(self, samples: Sequence[ParitySample], stop_ids: Collection[int]) -> list[str]:
        problems = []
        chats = [sample for sample in samples if sample.messages]
        num_differing = sum(
            tuple(render_ids(self._tokenizer, p.messages, add_generation_prompt=True, tools=p.tools or None))
            != p.prompt
            for p in chats
        )
        if num_differing:
            problems.append(f"{num_differing} of {len(chats)} prompts have other token ids under its chat template")
        named: Any = getattr(self._model.generation_config, "eos_token_id", None)
        stops = {named} if isinstance(named, int) else set(named or ())
        if stops != set(stop_ids):
            problems.append(f"its replies end at the tokens {sorted(stops)}, trained were {sorted(stop_ids)}")
        return problems


def collect_adapted_outputs(
    model: Any,
    tokenizer: "PreTrainedTokenizerBase",
    samples: Sequence[ParitySample],
    stop_ids: Collection[int],
    on_sample: Callable[[], None] = lambda: None,
) -> ParityOutputs:
    """What is expected of a delivered model, and how far the base without its adapter is from that."""
    reader = TransformersRunner(model, tokenizer)
    vocabulary = model.get_base_model().config.get_text_config().vocab_size
    outputs = replace(collect_outputs(reader, samples, stop_ids, vocabulary, on_sample), mismatches=())
    disable: Any = getattr(model, "disable_adapter", nullcontext)
    with disable():
        control = [reader.logits(p.ids, p.positions[: len(a)]) for p, a in zip(samples, outputs.logits, strict=True)]
    return replace(outputs, control_kl=measure_distance(outputs.logits, control)["mean_kl"])
