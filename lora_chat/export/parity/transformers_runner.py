"""Run parity samples through a model in Transformers."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from lora_chat.data.encoding.chat_template import render_ids
from lora_chat.export.parity.compare import measure_distance
from lora_chat.export.parity.outputs import ParityOutputs, ParityRunner, collect_outputs
from lora_chat.export.parity.samples import ParitySample
from lora_chat.inference.generation import generate_ids
from lora_chat.models.adapter import without_adapter
from lora_chat.models.logits import compute_logits

if TYPE_CHECKING:
    import torch
    from peft import PeftModel
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class TransformersRunner(ParityRunner):
    """A model with its tokenizer: the files written beside it, or for the adapted model the tokenizer of training."""

    def __init__(self, model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase") -> None:
        self._model = model.eval()
        self._tokenizer = tokenizer

    @property
    def name(self) -> str:
        """Return the name and version of Transformers."""
        import transformers

        return f"transformers {transformers.__version__}"

    def logits(self, ids: Sequence[int], positions: Sequence[int]) -> "torch.Tensor":
        """Return (positions, vocabulary) logits on the CPU."""
        import torch

        device = self._model.device
        with torch.inference_mode():
            row = torch.tensor([list(ids)], device=device)
            logits = compute_logits(self._model, torch.tensor(list(positions), device=device), input_ids=row)
        return logits[0].float().cpu()

    def replies(
        self, prompts: Sequence[Sequence[int]], stop_ids: Collection[int], max_new_tokens: int
    ) -> list[list[int]]:
        """Return a greedy reply to each prompt."""
        return generate_ids(self._model, int(self._tokenizer.pad_token_id), prompts, stop_ids, max_new_tokens)

    def mismatches(self, samples: Sequence[ParitySample], stop_ids: Collection[int]) -> list[str]:
        """Describe prompts and stop tokens of the written files that differ from training."""
        problems = []
        chats = [sample for sample in samples if sample.messages]
        num_differing = sum(
            tuple(render_ids(self._tokenizer, s.messages, add_generation_prompt=True, tools=s.tools or None))
            != s.prompt
            for s in chats
        )
        if num_differing:
            problems.append(f"{num_differing} of {len(chats)} prompts have other token ids under its chat template")
        eos_ids: int | list[int] | None = getattr(self._model.generation_config, "eos_token_id", None)
        found_stop_ids = {eos_ids} if isinstance(eos_ids, int) else set(eos_ids or ())
        if found_stop_ids != set(stop_ids):
            problems.append(
                f"its replies end at the tokens {sorted(found_stop_ids)}, but training used {sorted(stop_ids)}"
            )
        return problems


def collect_adapted_outputs(
    model: "PeftModel",
    tokenizer: "PreTrainedTokenizerBase",
    samples: Sequence[ParitySample],
    stop_ids: Collection[int],
    on_sample: Callable[[], None] = lambda: None,
) -> ParityOutputs:
    """Collect the outputs of the adapted model, and the KL of the base without the adapter as the negative control."""
    runner = TransformersRunner(model, tokenizer)
    vocab_size = model.get_base_model().config.get_text_config().vocab_size
    outputs = replace(collect_outputs(runner, samples, stop_ids, vocab_size, on_sample), mismatches=())
    with without_adapter(model):
        control = [
            runner.logits(sample.ids, sample.positions[: len(logits)])
            for sample, logits in zip(samples, outputs.logits, strict=True)
        ]
    return replace(outputs, control_kl=measure_distance(outputs.logits, control).mean_kl)
