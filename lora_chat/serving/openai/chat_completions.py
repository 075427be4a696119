"""Replies to conversations, whole or streamed."""

import asyncio
import json
import time
import uuid
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

from pydantic import ValidationError
from starlette.responses import JSONResponse, Response, StreamingResponse

from lora_chat.config.generation_section import GenerationSection
from lora_chat.data.encoding.chat_template import render_ids
from lora_chat.inference.continuous.request import (
    Finish,
    GeneratedToken,
    GenerationRequest,
    QueueFullError,
    RequestTooLongError,
)
from lora_chat.inference.generation import decode_reply
from lora_chat.serving.api_errors import ApiError
from lora_chat.serving.openai.chat_request import ChatRequest

if TYPE_CHECKING:
    from starlette.requests import Request

    from lora_chat.pipeline.admitted_model import AdmittedModel


async def answer_chat(request: "Request") -> Response:
    """Answer a conversation."""
    try:
        chat = ChatRequest.model_validate_json(await request.body())
    except ValidationError as error:
        first = error.errors()[0]
        raise ApiError(400, first["msg"], parameter=".".join(map(str, first["loc"]))) from error
    models, options = request.app.state.models, request.app.state.options
    model: AdmittedModel | None = models.find(chat.model)
    if model is None:
        raise ApiError(404, f"There is no model {chat.model}.", parameter="model", code="model_not_found")
    messages = [message.model_dump() for message in chat.messages]
    if model.system is not None and messages[0]["role"] != "system":
        messages.insert(0, {"role": "system", "content": model.system})
    prompt = await asyncio.to_thread(render_ids, model.tokenizer, messages, add_generation_prompt=True)
    top_p = chat.top_p if chat.temperature else 1.0
    wanted = GenerationRequest(
        prompt=tuple(prompt),
        adapter=model.adapter,
        stop_ids=frozenset(model.stop_ids),
        max_new_tokens=chat.max_tokens or options.max_new_tokens,
        generation=GenerationSection(temperature=chat.temperature, top_p=top_p, seed=chat.seed),
        deadline=time.monotonic() + options.request_seconds,
    )
    loop = asyncio.get_running_loop()
    received: asyncio.Queue[GeneratedToken | Finish] = asyncio.Queue()
    try:
        ticket = models.generator.submit(wanted, lambda item: loop.call_soon_threadsafe(received.put_nowait, item))
    except QueueFullError as error:
        raise ApiError(429, "Too many requests are waiting.", "rate_limit_error") from error
    except RequestTooLongError as error:
        raise ApiError(400, str(error), code="context_length_exceeded") from error
    head = {"id": f"chatcmpl-{uuid.uuid4().hex}", "created": int(time.time()), "model": model.name}

    async def stream() -> AsyncIterator[str]:
        ids: list[int] = []
        sent = ""
        delta: dict[str, str] = {"role": "assistant", "content": ""}
        reason = None
        try:
            while True:
                choice = {"index": 0, "delta": delta, "finish_reason": reason}
                yield f"data: {json.dumps({**head, 'object': 'chat.completion.chunk', 'choices': [choice]})}\n\n"
                if reason:
                    break
                item = await received.get()
                if isinstance(item, Finish):
                    delta, reason = {}, item.reason if item.reason == "stop" else "length"
                    continue
                ids.append(item.token)
                text = decode_reply(model.tokenizer, ids)
                delta, sent = {"content": text[len(sent) :]}, text
            yield "data: [DONE]\n\n"
        finally:
            ticket.cancel()

    if chat.stream:
        return StreamingResponse(stream(), media_type="text/event-stream")
    ids: list[int] = []
    while isinstance(item := await received.get(), GeneratedToken):
        ids.append(item.token)
    reply = {"role": "assistant", "content": decode_reply(model.tokenizer, ids)}
    choice = {"index": 0, "message": reply, "finish_reason": item.reason if item.reason == "stop" else "length"}
    usage = {
        "prompt_tokens": len(prompt),
        "completion_tokens": len(ids),
        "total_tokens": len(prompt) + len(ids),
    }
    return JSONResponse({**head, "object": "chat.completion", "choices": [choice], "usage": usage})
