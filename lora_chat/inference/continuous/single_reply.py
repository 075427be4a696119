"""A reply by the model's own generation, for models whose requests cannot share steps."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from lora_chat.inference.batch_support import find_batch_support
from lora_chat.inference.continuous.request import GenerationRequest
from lora_chat.inference.generation import contiguous_hidden_states, without_base_settings
from lora_chat.inference.sampler import make_processors
from lora_chat.models.named_adapters import read_vocabulary_size, using_adapter

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel


def generate_single(
    model: "PreTrainedModel",
    pad: int,
    request: GenerationRequest,
    receive: "Callable[[int, torch.Tensor], bool]",
) -> None:
    """Generate a reply. `receive` gets each token with its logits (vocabulary,), and returns whether to stop."""
    import torch
    from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList, StoppingCriteria

    logits: list[torch.Tensor] = []
    num_tokens = read_vocabulary_size(model, request.adapter)

    class Recorder(LogitsProcessor):
        """Processor that keeps the logits before temperature and nucleus."""

        def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
            logits[:] = [scores[0, :num_tokens]]
            return scores if num_tokens is None else scores[:, :num_tokens]

    class TokenPasser(StoppingCriteria):
        """Criterion that passes the last token on."""

        def __call__(self, input_ids: torch.Tensor, scores: object, **_: object) -> torch.Tensor:
            is_done = receive(int(input_ids[0, -1]), logits[0])
            return torch.tensor([is_done], device=input_ids.device)

    prompt: Sequence[int] = request.prompt
    ids = torch.tensor([list(prompt)], device=model.device)
    with torch.inference_mode(), using_adapter(model, request.adapter), contiguous_hidden_states(model):
        support = find_batch_support(model, pad, prompt)
        settings = GenerationConfig(do_sample=False, num_beams=1, max_new_tokens=request.max_new_tokens)
        settings.use_cache, settings.pad_token_id = support.caches, pad
        with without_base_settings(model):
            model.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                generation_config=settings,
                logits_processor=LogitsProcessorList(
                    [Recorder(), *make_processors(request.generation, [request.number])]
                ),
                stopping_criteria=[TokenPasser()],
            )
