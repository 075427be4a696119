"""A model that is open in transformers, asked what a proof asks."""

from collections.abc import Callable, Collection, Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from lora_chat.data.encoding.chat_template import render_ids
from lora_chat.export.parity.compare import measure_distance
from lora_chat.export.parity.outputs import Answers, Reader, ask
from lora_chat.export.parity.samples import Probe
from lora_chat.inference.generation import generate_ids

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class ModelReader(Reader):
    """A model with a tokenizer of its own: what was written beside it, or, for the adapted one, that of training."""

    def __init__(self, model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase") -> None:
        self._model = model.eval()
        self._tokenizer = tokenizer

    @property
    def name(self) -> str:
        import transformers

        return f"transformers {transformers.__version__}"

    def logits(self, ids: Sequence[int], places: Sequence[int]) -> "torch.Tensor":
        import torch

        device = self._model.device
        with torch.inference_mode():
            found = self._model(
                input_ids=torch.tensor([list(ids)], device=device),
                logits_to_keep=torch.tensor(list(places), device=device),
                use_cache=False,
            )
        return found.logits[0].float().cpu()  # type: ignore[no-any-return]

    def replies(self, prompts: Sequence[Sequence[int]], stop_ids: Collection[int], most: int) -> list[list[int]]:
        return generate_ids(self._model, int(self._tokenizer.pad_token_id), prompts, stop_ids, most)

    def misread(self, probes: Sequence[Probe], stop_ids: Collection[int]) -> list[str]:
        found = []
        chats = [probe for probe in probes if probe.messages]
        other = sum(
            tuple(render_ids(self._tokenizer, p.messages, reply_follows=True, tools=p.tools or None)) != p.prompt
            for p in chats
        )
        if other:
            found.append(f"{other} of {len(chats)} prompts have other token ids under its chat template")
        named: Any = getattr(self._model.generation_config, "eos_token_id", None)
        stops = {named} if isinstance(named, int) else set(named or ())
        if stops != set(stop_ids):
            found.append(f"its replies end at the tokens {sorted(stops)}, trained were {sorted(stop_ids)}")
        return found


def ask_adapted(
    model: Any,
    tokenizer: "PreTrainedTokenizerBase",
    probes: Sequence[Probe],
    stop_ids: Collection[int],
    step: Callable[[], None] = lambda: None,
) -> Answers:
    """What is expected of a delivered model, and how far the base without its adapter is from that."""
    reader = ModelReader(model, tokenizer)
    vocabulary = model.get_base_model().config.get_text_config().vocab_size
    answers = replace(ask(reader, probes, stop_ids, vocabulary, step), misread=())
    disable: Any = getattr(model, "disable_adapter", nullcontext)
    with disable():
        control = [reader.logits(p.ids, p.places[: len(a)]) for p, a in zip(probes, answers.logits, strict=True)]
    return replace(answers, control_kl=measure_distance(answers.logits, control)["mean_kl"])
