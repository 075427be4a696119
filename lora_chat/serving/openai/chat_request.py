"""The fields of a request for a reply to a conversation."""

from typing import Annotated, Literal

from pydantic import Field, JsonValue, StringConstraints, model_validator

from lora_chat.config.base import Seed, StrictModel

ModelName = Annotated[str, StringConstraints(min_length=1, max_length=512)]
ReasoningEffort = Literal["none", "minimal", "low", "medium", "high", "xhigh"]


class FunctionCallRequest(StrictModel):
    """The function and the arguments of a call in an earlier reply."""

    name: Annotated[str, StringConstraints(min_length=1, max_length=200)]
    arguments: str | dict[str, JsonValue]
    """JSON text of an object, or the object."""


class ToolCallRequest(StrictModel):
    """A tool call in an earlier reply."""

    id: Annotated[str, StringConstraints(max_length=200)] | None = None
    type: Literal["function"] = "function"
    function: FunctionCallRequest
    index: int | None = None


class MessageRequest(StrictModel):
    """One message of a conversation."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[dict[str, JsonValue]] | None = None
    """Text, or a list of parts of the type `text`."""
    name: str | None = None
    reasoning_content: str | None = None
    """Reasoning of an earlier reply; the chat template decides whether it stays in the prompt."""
    reasoning: str | None = None
    """The same, under another name."""
    thinking: str | None = None
    """The same, under another name."""
    tool_calls: list[ToolCallRequest] | None = None
    tool_call_id: str | None = None
    refusal: None = None
    audio: None = None
    function_call: None = None
    annotations: Annotated[list[JsonValue], Field(max_length=0)] | None = None


class TemplateArguments(StrictModel):
    """Variables of the chat template that a request may set."""

    enable_thinking: bool | None = None


class StreamOptions(StrictModel):
    """Options of a stream."""

    include_usage: bool = False
    include_obfuscation: Literal[False] = False


class SamplingRequest(StrictModel):
    """Fields of every request for a reply."""

    model: ModelName
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    """Temperature; absent or 0 takes the most probable token each time."""
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    seed: Seed | None = None
    """Seed of sampling; absent takes a random one."""
    n: Annotated[int, Field(ge=1)] = 1
    stop: str | list[str] | None = None
    """Texts before which a reply ends."""
    stream: bool = False
    stream_options: StreamOptions | None = None

    @model_validator(mode="after")
    def _check_sampling(self) -> "SamplingRequest":
        if self.temperature is None and self.top_p is not None and self.top_p < 1:
            raise ValueError("top_p changes nothing at temperature 0, the default here; set a temperature such as 0.8")
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options needs stream: true")
        return self


class ChatPromptRequest(StrictModel):
    """Fields that decide the prompt of a conversation."""

    messages: Annotated[list[MessageRequest], Field(min_length=1)]
    tools: list[dict[str, JsonValue]] | None = None
    """Functions that a reply may call; passed to the chat template."""
    chat_template_kwargs: TemplateArguments | None = None
    """`enable_thinking`, for a chat template with a switch for thoughts."""
    reasoning_effort: ReasoningEffort | None = None
    """`none` or `high`, for a chat template with a switch for thoughts."""


class ChatRequest(SamplingRequest, ChatPromptRequest):
    """A conversation to be answered."""

    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    """The same as `max_tokens`."""
    tool_choice: JsonValue = None
    """`auto`, or `none` to leave the tools out of the prompt."""
    logprobs: bool = False
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None

    @model_validator(mode="after")
    def _check_fields(self) -> "ChatRequest":
        if self.top_logprobs is not None and not self.logprobs:
            raise ValueError("top_logprobs needs logprobs: true")
        if None not in (self.max_tokens, self.max_completion_tokens) and self.max_tokens != self.max_completion_tokens:
            raise ValueError("max_tokens and max_completion_tokens differ; leave one out")
        return self
