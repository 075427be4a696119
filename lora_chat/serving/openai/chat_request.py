"""What a request for a reply may contain."""

from typing import Annotated, Literal

from pydantic import Field

from lora_chat.config.base import StrictModel


class ChatMessageRequest(StrictModel):
    """One message of a conversation."""

    role: Literal["system", "user", "assistant"]
    content: str


class ChatRequest(StrictModel):
    """A conversation to be answered."""

    model: str
    messages: Annotated[tuple[ChatMessageRequest, ...], Field(min_length=1)]
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] = 0.0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    seed: int = 0
    stream: bool = False
