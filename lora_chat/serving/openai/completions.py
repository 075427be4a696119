"""Texts that continue a prompt, without the chat template, as `lora-chat generate` does."""

import asyncio
import time
import uuid
from collections.abc import AsyncIterator, Sequence
from typing import TYPE_CHECKING

from starlette.responses import JSONResponse, Response

from lora_chat.data.encoding.control_tokens import read_token_limit
from lora_chat.data.parsing.checked_text import check_text
from lora_chat.serving.api_errors import ApiError
from lora_chat.serving.openai.chat_prompt import explained_refusals
from lora_chat.serving.openai.choice import ChoiceDelta
from lora_chat.serving.openai.completion_request import CompletionRequest
from lora_chat.serving.openai.model_traits import traits_of
from lora_chat.serving.openai.prompt_threads import run_in_thread
from lora_chat.serving.openai.reply_length import choose_max_tokens, read_window
from lora_chat.serving.openai.reply_task import ReplyTask, check_limits, find_model, make_task
from lora_chat.serving.openai.request_body import parse_body
from lora_chat.serving.openai.running_replies import RunningReplies
from lora_chat.serving.openai.server_sent_events import EventStream
from lora_chat.serving.request_record import record_of

if TYPE_CHECKING:
    from starlette.requests import Request

    from lora_chat.pipeline.admitted_model import AdmittedModel
    from lora_chat.pipeline.served_models import ServedModels
    from lora_chat.serving.server_options import ServerOptions

DEFAULT_MAX_TOKENS = 16
"""Number of tokens without `max_tokens`, as in OpenAI's API."""


async def answer_completion(request: "Request") -> Response:
    """Continue a text."""
    state, body = request.app.state, await request.body()
    wanted, task = await run_in_thread(lambda: prepare_completion(body, state.models, state.options))
    replies = RunningReplies(state.models.generator, task, record_of(request), state.telemetry)
    answer = _CompletionAnswer(wanted, task, replies)
    if wanted.stream:
        return EventStream(answer.stream(), replies.cancel)
    try:
        return await answer.collect()
    finally:
        replies.cancel()


def prepare_completion(
    body: bytes, models: "ServedModels", options: "ServerOptions"
) -> tuple[CompletionRequest, ReplyTask]:
    """Return a checked request and its task. Raise ApiError for a request that cannot be answered."""
    request = parse_body(body, CompletionRequest)
    model = find_model(models, request.model)
    if request.echo and request.logprobs is not None:
        raise ApiError(
            400,
            "echo: log-probabilities of a prompt are not computed; leave out echo or logprobs.",
            parameter="echo",
            code="unsupported_parameter",
        )
    prompts = split_prompts(request.prompt)
    check_limits(
        request,
        options,
        prompts=len(prompts),
        max_tokens=request.max_tokens,
        wants_logprobs=request.logprobs is not None,
    )
    ids = [encode_prompt(prompt, model) for prompt in prompts]
    task = make_task(
        request,
        model,
        ids,
        None,
        options,
        max_tokens=choose_max_tokens(
            request.max_tokens,
            ids,
            read_window(model, models),
            options,
            source="prompt",
            default=DEFAULT_MAX_TOKENS,
        ),
        top_logprobs=request.logprobs,
    )
    return request, task


def split_prompts(prompt: str | list[str] | list[int] | list[list[int]]) -> list[str | list[int]]:
    """Return the prompts of a request. Raise ApiError if none exist."""
    if isinstance(prompt, str) or (prompt and isinstance(prompt[0], int)):
        return [prompt]
    if not prompt:
        raise ApiError(400, "prompt: the list is empty.", parameter="prompt", code="invalid_value")
    return list(prompt)  # type: ignore[arg-type]


def encode_prompt(prompt: str | list[int], model: "AdmittedModel") -> list[int]:
    """Return the ids of a text as in training, or checked ids. Raise ApiError for others."""
    if isinstance(prompt, list):
        limit = min(len(model.tokenizer), read_token_limit(model.tokenizer) or len(model.tokenizer))
        if not prompt or max(prompt) >= limit:
            raise ApiError(
                400, f"prompt: token ids are from 0 to {limit - 1:,}.", parameter="prompt", code="invalid_value"
            )
        return prompt
    with explained_refusals("prompt"):
        ids = traits_of(model).encode_text(check_text(prompt, "prompt"))
    if not ids:
        raise ApiError(400, "prompt: the text is empty.", parameter="prompt", code="invalid_value")
    return ids


class _CompletionAnswer:
    """The answer to one request in OpenAI's form for texts."""

    def __init__(self, request: CompletionRequest, task: ReplyTask, replies: RunningReplies) -> None:
        self._request, self._task, self._replies = request, task, replies
        self._head = {
            "id": f"cmpl-{uuid.uuid4().hex}",
            "object": "text_completion",
            "created": int(time.time()),
            "model": task.model.name,
        }

    async def collect(self) -> Response:
        """Return the whole answer, written in a thread because log-probabilities of long replies take time."""
        deltas: list[list[ChoiceDelta]] = [[] for _ in self._replies.choices]
        async for delta in self._replies.read_deltas():
            deltas[delta.index].append(delta)
        return await asyncio.to_thread(lambda: JSONResponse(self._join_all(deltas)))

    async def stream(self) -> AsyncIterator[dict[str, object]]:
        """Yield the chunks of the answer, and the usage if it is wanted."""
        options = self._request.stream_options
        usage: dict[str, object] = {"usage": None} if options is not None and options.include_usage else {}
        for index in range(len(self._replies.choices)) if self._request.echo else ():
            yield {**self._head, "choices": [self._describe(index, self._read_echo(index), [])], **usage}
        async for delta in self._replies.read_deltas():
            yield {**self._head, "choices": [self._describe(delta.index, "", [delta])], **usage}
        if usage:
            yield {**self._head, "choices": [], "usage": self._replies.describe_usage()}

    def _join_all(self, deltas: Sequence[Sequence[ChoiceDelta]]) -> dict[str, object]:
        choices = [self._describe(index, self._read_echo(index), parts) for index, parts in enumerate(deltas)]
        return {**self._head, "choices": choices, "usage": self._replies.describe_usage()}

    def _read_echo(self, index: int) -> str:
        """Return the prompt of a text if it is wanted."""
        if not self._request.echo:
            return ""
        prompt = split_prompts(self._request.prompt)[index // self._task.count]
        return prompt if isinstance(prompt, str) else str(self._task.model.tokenizer.decode(prompt))

    def _describe(self, index: int, beginning: str, parts: Sequence[ChoiceDelta]) -> dict[str, object]:
        tokens = [token for part in parts for token in part.tokens]
        texts = traits_of(self._task.model).texts
        wanted = self._request.logprobs is not None
        logprobs = (
            texts.describe_legacy([item for item, _ in tokens], [start for _, start in tokens]) if wanted else None
        )
        return {
            "index": index,
            "text": beginning + "".join(part.content for part in parts),
            "logprobs": logprobs,
            "finish_reason": parts[-1].finish if parts else None,
        }
