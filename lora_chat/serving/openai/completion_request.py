"""The fields of a request for a text that continues a prompt."""

from typing import Annotated

from pydantic import Field

from lora_chat.serving.openai.chat_request import SamplingRequest

TokenId = Annotated[int, Field(ge=0)]


class CompletionRequest(SamplingRequest):
    """A plain text to be continued, without the chat template."""

    prompt: str | list[str] | Annotated[list[TokenId], Field(min_length=1)] | list[list[TokenId]]
    """A text, token ids, or a list of either."""
    echo: bool = False
    """Whether each text begins with its prompt."""
    logprobs: Annotated[int, Field(ge=0, le=5)] | None = None
    """Number of alternatives of each token."""
