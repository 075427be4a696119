"""Replies to conversations, whole or streamed."""

import asyncio
import time
import uuid
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import TYPE_CHECKING

from starlette.responses import JSONResponse, Response

from lora_chat.data.dialogue import ToolCall
from lora_chat.serving.openai.chat_prompt import explained_refusals, list_tool_names, render_prompt
from lora_chat.serving.openai.chat_request import ChatRequest
from lora_chat.serving.openai.choice import ChoiceDelta
from lora_chat.serving.openai.conversation import read_tool_choice
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

    from lora_chat.pipeline.served_models import ServedModels
    from lora_chat.serving.openai.token_texts import TokenTexts
    from lora_chat.serving.server_options import ServerOptions


async def answer_chat(request: "Request") -> Response:
    """Answer a conversation."""
    state, body = request.app.state, await request.body()
    chat, task = await run_in_thread(lambda: prepare_chat(body, state.models, state.options))
    replies = RunningReplies(state.models.generator, task, record_of(request), state.telemetry)
    answer = _ChatAnswer(chat, task, replies)
    if chat.stream:
        return EventStream(answer.stream(), replies.cancel)
    try:
        return await answer.collect()
    finally:
        replies.cancel()


def prepare_chat(body: bytes, models: "ServedModels", options: "ServerOptions") -> tuple[ChatRequest, ReplyTask]:
    """Return a checked request and its task. Raise ApiError for a request that cannot be answered."""
    chat = parse_body(body, ChatRequest)
    model = find_model(models, chat.model)
    wanted = chat.max_tokens if chat.max_completion_tokens is None else chat.max_completion_tokens
    check_limits(chat, options, prompts=1, max_tokens=wanted, wants_logprobs=chat.logprobs)
    offers_tools = read_tool_choice(chat.tool_choice)
    with explained_refusals("messages"):
        prompt, tools = render_prompt(chat, model, options, offers_tools=offers_tools)
        form = traits_of(model).describe_replies(prompt, list_tool_names(tools))
    task = make_task(
        chat,
        model,
        [prompt],
        form,
        options,
        max_tokens=choose_max_tokens(wanted, [prompt], read_window(model, models), options, source="messages"),
        top_logprobs=(chat.top_logprobs or 0) if chat.logprobs else None,
    )
    return chat, task


class _ChatAnswer:
    """The answer to one request in OpenAI's form."""

    def __init__(self, chat: ChatRequest, task: ReplyTask, replies: RunningReplies) -> None:
        self._chat, self._replies = chat, replies
        self._texts: TokenTexts = traits_of(task.model).texts
        self._head = {
            "id": f"chatcmpl-{uuid.uuid4().hex}",
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
        """Yield the chunks of the answer: the role of each reply, its parts, its end, and the usage if it is wanted."""
        for index in range(len(self._replies.choices)):
            yield self._make_chunk([self._describe_choice(index, {"role": "assistant", "content": ""})])
        counts = [0] * len(self._replies.choices)
        async for delta in self._replies.read_deltas():
            parts: dict[str, object] = {}
            if delta.reasoning:
                parts["reasoning_content"] = delta.reasoning
            if delta.content:
                parts["content"] = delta.content
            if delta.calls:
                first = counts[delta.index]
                parts["tool_calls"] = [
                    {"index": first + n, **_describe_call(call)} for n, call in enumerate(delta.calls)
                ]
                counts[delta.index] += len(delta.calls)
            logprobs = self._describe_logprobs([delta])
            if parts or (logprobs and delta.tokens):
                yield self._make_chunk([self._describe_choice(delta.index, parts, logprobs=logprobs)])
            if delta.finish:
                yield self._make_chunk([self._describe_choice(delta.index, {}, delta.finish)])
        if self._includes_usage:
            yield self._make_chunk([], self._replies.describe_usage())

    @property
    def _includes_usage(self) -> bool:
        return self._chat.stream_options is not None and self._chat.stream_options.include_usage

    def _make_chunk(
        self, choices: Sequence[Mapping[str, object]], usage: Mapping[str, object] | None = None
    ) -> dict[str, object]:
        chunk = {**self._head, "object": "chat.completion.chunk", "choices": list(choices)}
        return {**chunk, "usage": usage} if self._includes_usage else chunk

    def _describe_choice(
        self,
        index: int,
        delta: Mapping[str, object],
        finish: str | None = None,
        logprobs: Mapping[str, object] | None = None,
    ) -> dict[str, object]:
        return {"index": index, "delta": dict(delta), "logprobs": logprobs, "finish_reason": finish}

    def _join_all(self, deltas: Sequence[Sequence[ChoiceDelta]]) -> dict[str, object]:
        choices = [self._join(index, parts) for index, parts in enumerate(deltas)]
        usage = self._replies.describe_usage()
        return {**self._head, "object": "chat.completion", "choices": choices, "usage": usage}

    def _join(self, index: int, parts: Sequence[ChoiceDelta]) -> dict[str, object]:
        """Return one whole reply."""
        content, reasoning = "".join(part.content for part in parts), "".join(part.reasoning for part in parts)
        calls = [_describe_call(call) for part in parts for call in part.calls]
        message: dict[str, object] = {
            "role": "assistant",
            "content": content if content or not calls else None,
            "refusal": None,
        }
        if reasoning:
            message["reasoning_content"] = reasoning
        if calls:
            message["tool_calls"] = calls
        return {
            "index": index,
            "message": message,
            "logprobs": self._describe_logprobs(parts),
            "finish_reason": parts[-1].finish,
        }

    def _describe_logprobs(self, parts: Sequence[ChoiceDelta]) -> dict[str, object] | None:
        """Return the tokens of a reply with their log-probabilities, reasoning and calls included; None if unwanted."""
        if not self._chat.logprobs:
            return None
        items = [item for part in parts for item, _ in part.tokens]
        return {"content": [self._texts.describe_generated(item) for item in items], "refusal": None}


def _describe_call(call: ToolCall) -> dict[str, object]:
    """Return a tool call with a new identity."""
    function = {"name": call.name, "arguments": call.arguments}
    return {"id": f"call_{uuid.uuid4().hex[:24]}", "type": "function", "function": function}
