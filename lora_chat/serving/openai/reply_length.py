"""The largest number of tokens of a reply: of the request, of the server, and of the room beside the prompt."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from lora_chat.serving.api_errors import ApiError
from lora_chat.serving.server_options import ServerOptions

if TYPE_CHECKING:
    from lora_chat.pipeline.admitted_model import AdmittedModel
    from lora_chat.pipeline.served_models import ServedModels


def read_window(model: "AdmittedModel", models: "ServedModels") -> int | None:
    """Return the largest number of tokens of a prompt with its reply, by the context and by the memory for them."""
    capacity = models.generator.statistics().cache_capacity or None
    return min(filter(None, (model.positions, capacity)), default=None)


def choose_max_tokens(
    wanted: int | None,
    prompts: Sequence[Sequence[int]],
    window: int | None,
    options: ServerOptions,
    *,
    source: str,
    default: int | None = None,
) -> int:
    """Return the largest number of tokens of a reply: the wanted one, or the room up to a default.

    `source` is the field with the prompt. Raise ApiError with the counts for a request that does not fit.
    """
    if not all(prompts):
        raise ApiError(400, f"{source}: the prompt has no tokens.", parameter=source, code="invalid_prompt")
    prompt = max(map(len, prompts))
    if window is not None and prompt + (wanted or 1) > window:
        asked = f" and {wanted:,} in the reply ({prompt + wanted:,} together)" if wanted else ""
        raise ApiError(
            400,
            f"Prompt and reply have room for {window:,} tokens, but the request has {prompt:,} tokens in the prompt"
            f"{asked}. Shorten the {source} or the reply.",
            parameter=source,
            code="context_length_exceeded",
        )
    limits = (wanted or default or options.max_new_tokens, options.max_new_tokens)
    return min(*limits, *(() if window is None else (window - prompt,)))
