"""The generation that a checked request asks for, within the limits of the server."""

import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lora_chat.config.generation_section import GenerationSection
from lora_chat.inference.continuous.request import GenerationRequest
from lora_chat.serving.api_errors import ApiError
from lora_chat.serving.openai.chat_request import SamplingRequest
from lora_chat.serving.openai.reply_parser import ReplyForm
from lora_chat.serving.openai.request_body import show_name
from lora_chat.serving.server_options import ServerOptions

if TYPE_CHECKING:
    from lora_chat.pipeline.admitted_model import AdmittedModel
    from lora_chat.pipeline.served_models import ServedModels
    from lora_chat.serving.reply_filter.filter_settings import FilterSettings


@dataclass(frozen=True)
class ReplyTask:
    """Prompts and how to answer each of them."""

    model: "AdmittedModel"
    prompts: tuple[tuple[int, ...], ...]
    form: ReplyForm | None
    """Form of the replies; None for texts that continue a prompt, which are not parsed."""
    max_new_tokens: int
    generation: GenerationSection
    count: int
    """Number of replies to each prompt; each draws other random numbers."""
    stops: tuple[str, ...]
    top_logprobs: int | None
    deadline: float
    reply_filter: "FilterSettings | None" = None

    @property
    def requests(self) -> list[GenerationRequest]:
        """Return the requests to the generator, the replies to one prompt after each other."""
        return [
            GenerationRequest(
                prompt=prompt,
                adapter=self.model.adapter,
                stop_ids=frozenset(self.model.stop_ids),
                max_new_tokens=self.max_new_tokens,
                generation=self.generation,
                number=number,
                top_logprobs=self.top_logprobs,
                deadline=self.deadline,
            )
            for prompt in self.prompts
            for number in range(self.count)
        ]


def find_model(models: "ServedModels", name: str) -> "AdmittedModel":
    """Return the model of a name. Raise ApiError if it does not answer, with the reason if it was refused."""
    model = models.find(name)
    if model is not None:
        return model
    reason = models.refused.get(name)
    message = f"The model {show_name(name)} is not served: {reason}" if reason else f"Unknown model: {show_name(name)}"
    raise ApiError(404, message, parameter="model", code="model_not_found")


def check_limits(
    request: SamplingRequest, options: ServerOptions, *, prompts: int, max_tokens: int | None, wants_logprobs: bool
) -> None:
    """Raise ApiError for a request that exceeds a limit of the server, before its prompts are rendered."""
    choices, stops = request.n * prompts, _list_stops(request)
    if choices > options.max_choices:
        raise ApiError(
            400,
            f"The request asks for {choices:,} replies, and at most {options.max_choices:,} are generated together.",
            parameter="n" if request.n > 1 else "prompt",
            code="too_many_choices",
        )
    if max_tokens is not None and max_tokens > options.max_new_tokens:
        raise ApiError(
            400,
            f"max_tokens: {max_tokens:,} is more than the largest reply of this server, "
            f"{options.max_new_tokens:,} tokens.",
            parameter="max_tokens",
            code="invalid_value",
        )
    if wants_logprobs and options.reply_filter is not None:
        raise ApiError(
            400,
            "logprobs: the server filters replies, and log-probabilities would show the tokens that it replaced.",
            parameter="logprobs",
            code="unsupported_parameter",
        )
    reason = None
    if len(stops) > options.max_stop_texts:
        reason = f"at most {options.max_stop_texts} texts are accepted"
    elif not all(stops):
        reason = "a text is empty"
    elif any(len(text) > options.max_stop_characters for text in stops):
        reason = f"a text has at most {options.max_stop_characters} characters"
    if reason:
        raise ApiError(400, f"stop: {reason}.", parameter="stop", code="invalid_value")


def make_task(
    request: SamplingRequest,
    model: "AdmittedModel",
    prompts: Sequence[Sequence[int]],
    form: ReplyForm | None,
    options: ServerOptions,
    *,
    max_tokens: int,
    top_logprobs: int | None,
) -> ReplyTask:
    """Return the task of a request that `check_limits` accepted."""
    return ReplyTask(
        model,
        tuple(map(tuple, prompts)),
        form,
        max_tokens,
        _read_generation(request),
        request.n,
        _list_stops(request),
        top_logprobs,
        time.monotonic() + options.request_seconds,
        options.reply_filter,
    )


def _read_generation(request: SamplingRequest) -> GenerationSection:
    """Return how tokens are chosen: greedy if no temperature is set, and otherwise by a random seed if none is set."""
    temperature, top_p = request.temperature or 0.0, 1.0 if request.top_p is None else request.top_p
    if temperature == 0 or top_p == 0:
        return GenerationSection()
    seed = secrets.randbelow(2**32) if request.seed is None else request.seed
    return GenerationSection(temperature=float(temperature), top_p=float(top_p), seed=seed)


def _list_stops(request: SamplingRequest) -> tuple[str, ...]:
    return (request.stop,) if isinstance(request.stop, str) else tuple(request.stop or ())
