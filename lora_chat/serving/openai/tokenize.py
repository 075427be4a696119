"""The tokens of a conversation or text, exactly as the other routes use them, so that parity can be checked."""

from typing import TYPE_CHECKING

from pydantic import model_validator
from starlette.responses import JSONResponse

from lora_chat.serving.api_errors import ApiError
from lora_chat.serving.openai.chat_prompt import explained_refusals, render_prompt
from lora_chat.serving.openai.chat_request import ChatPromptRequest, MessageRequest, ModelName
from lora_chat.serving.openai.completions import encode_prompt
from lora_chat.serving.openai.model_traits import traits_of
from lora_chat.serving.openai.prompt_threads import run_in_thread
from lora_chat.serving.openai.reply_task import find_model
from lora_chat.serving.openai.request_body import parse_body

if TYPE_CHECKING:
    from starlette.requests import Request

    from lora_chat.pipeline.served_models import ServedModels
    from lora_chat.serving.server_options import ServerOptions

_MAX_TOKENS = 65_536
"""Largest number of tokens that an answer lists."""


class TokenizeRequest(ChatPromptRequest):
    """A conversation or a text whose tokens are wanted."""

    model: ModelName
    messages: list[MessageRequest] | None = None  # type: ignore[assignment]  # a text has none
    prompt: str | None = None
    """A plain text, as for `/v1/completions`."""
    add_generation_prompt: bool = True
    """Whether the opening of a reply is a part of the prompt of a conversation."""

    @model_validator(mode="after")
    def _check_source(self) -> "TokenizeRequest":
        if (self.prompt is None) == (not self.messages):
            raise ValueError("messages or prompt must be given, and not both")
        return self


async def answer_tokenize(request: "Request") -> JSONResponse:
    """Return the ids of a prompt, and the text of each."""
    state, body = request.app.state, await request.body()
    return await run_in_thread(lambda: JSONResponse(tokenize(body, state.models, state.options)))


def tokenize(body: bytes, models: "ServedModels", options: "ServerOptions") -> dict[str, object]:
    """Return the tokens of a prompt as JSON. Raise ApiError for a prompt that the other routes refuse too."""
    request = parse_body(body, TokenizeRequest)
    model = find_model(models, request.model)
    if request.prompt is not None:
        ids = encode_prompt(request.prompt, model)
    else:
        with explained_refusals("messages"):
            ids, _ = render_prompt(request, model, options, add_generation_prompt=request.add_generation_prompt)
    if len(ids) > _MAX_TOKENS:
        raise ApiError(
            400,
            f"The prompt has {len(ids):,} tokens, and at most {_MAX_TOKENS:,} are listed.",
            parameter="messages" if request.prompt is None else "prompt",
            code="too_many_tokens",
        )
    texts = traits_of(model).texts
    return {
        "object": "tokens",
        "model": model.name,
        "count": len(ids),
        "max_model_len": model.positions,
        "ids": ids,
        "tokens": [{"id": token, "text": texts.read_text(token)} for token in ids],
        "prompt": str(model.tokenizer.decode(ids)),
    }
