"""Requests to an endpoint in the form of OpenAI's API; nothing in its answers is believed before it was checked."""

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

from lora_chat.data.dialogue import ChatMessage
from lora_chat.errors import UnavailableError, UsageError
from lora_chat.system.http_client import HttpAnswer, HttpEndpoint
from lora_chat.system.sanitize import sanitize_line

_TOP_TOKENS = (20, 5, 0)
"""Numbers of alternatives that are asked for, until the endpoint accepts one; 0 asks for no probabilities."""
_MAX_ATTEMPTS, _MAX_WAIT_SECONDS = 5, 10.0
_MAX_NAMES = 1_000
_MAX_REPLY_CHARACTERS = 100_000
_BUSY = (429, 503)


@dataclass(frozen=True)
class TokenProbabilities:
    """A token of a reply with its most probable alternatives, as texts with natural logarithms of probabilities."""

    text: str
    top: tuple[tuple[str, float], ...]


@dataclass(frozen=True)
class EndpointReply:
    """A reply of an endpoint."""

    text: str
    has_ended: bool
    """Whether it ended with a stop token."""
    has_thoughts: bool = False
    """Whether the endpoint separated thoughts, which are the beginning of `text`, from the rest."""
    prompt_tokens: int | None = None
    tokens: tuple[TokenProbabilities, ...] = ()
    """Empty if the endpoint does not report probabilities."""


class EndpointClient:
    """Asks one model of one endpoint."""

    def __init__(self, endpoint: HttpEndpoint, model: str | None) -> None:
        is_api = urlsplit(endpoint.url).path.endswith("/v1")
        self._endpoint = endpoint
        self._prefix = "" if is_api else "/v1"
        self._root = HttpEndpoint(endpoint.url.removesuffix("/v1"), endpoint.is_local, endpoint.key)
        self._top_tokens = list(_TOP_TOKENS)
        self.model = model if model is not None else self._find_model()

    def ask(self, messages: Sequence[ChatMessage], max_tokens: int) -> EndpointReply:
        """Return the greedy reply. Raises UnavailableError if the endpoint gives none."""
        while True:
            top = self._top_tokens[0]
            body: dict[str, object] = {"model": self.model, "messages": list(messages), "max_tokens": max_tokens}
            body |= {"temperature": 0, "stream": False}
            body |= {"logprobs": True, "top_logprobs": top} if top else {}
            answer = self._post_patiently(f"{self._prefix}/chat/completions", body)
            if answer.is_good:
                return _read_reply(answer.value)
            if len(self._top_tokens) > 1 and answer.status in (400, 404, 405, 422, 500, 501):
                self._top_tokens.pop(0)
                continue
            raise UnavailableError(f"The endpoint gives no reply: {_describe(answer)}.")

    def read_prompt_ids(self, messages: Sequence[ChatMessage]) -> tuple[int, ...] | None:
        """Return the ids of a conversation as the endpoint encodes it; None if it does not report them."""
        for ids in self._try_tokenizers(messages):
            if ids:
                return ids
        return None

    def _try_tokenizers(self, messages: Sequence[ChatMessage]) -> Iterator[tuple[int, ...] | None]:
        """Yield the ids of different servers' routes: lora_chat's, vLLM's and llama.cpp's."""
        chat = {"model": self.model, "messages": list(messages)}
        yield _read_ids(self._endpoint.post(f"{self._prefix}/tokenize", chat))
        yield _read_ids(self._root.post("/tokenize", {**chat, "add_generation_prompt": True}))
        prompt = self._root.post("/apply-template", {"messages": list(messages)})
        text = prompt.value.get("prompt") if prompt.is_good and isinstance(prompt.value, dict) else None
        if isinstance(text, str):
            body = {"content": text, "add_special": True, "parse_special": True}
            yield _read_ids(self._root.post("/tokenize", body))

    def _post_patiently(self, path: str, body: object) -> HttpAnswer:
        """Return an answer; a busy endpoint is asked again."""
        answer = self._endpoint.post(path, body)
        for _ in range(_MAX_ATTEMPTS - 1):
            if answer.status not in _BUSY:
                break
            time.sleep(min(max(answer.retry_after, 0.5), _MAX_WAIT_SECONDS))
            answer = self._endpoint.post(path, body)
        return answer

    def _find_model(self) -> str:
        """Return the name of the only model."""
        answer = self._endpoint.get(f"{self._prefix}/models")
        data = answer.value.get("data") if answer.is_good and isinstance(answer.value, dict) else None
        if not isinstance(data, list):
            raise UnavailableError(f"The endpoint lists no models: {_describe(answer)}. Fix: add --model NAME.")
        names = [entry["id"] for entry in data[:_MAX_NAMES] if isinstance(entry, dict) and _is_text(entry.get("id"))]
        if len(names) == 1:
            return str(names[0])
        shown = ", ".join(sanitize_line(str(name), 60) for name in names[:20])
        raise UsageError(f"The endpoint has {len(names)} models ({shown}). Fix: choose one with --model NAME.")


def _read_reply(value: object) -> EndpointReply:
    """Return a checked reply. Raises UnavailableError if it does not have the form of OpenAI's API."""
    choices = value.get("choices") if isinstance(value, dict) else None
    choice = choices[0] if isinstance(choices, list) and choices else None
    message = choice.get("message") if isinstance(choice, dict) else None
    if not isinstance(value, dict) or not isinstance(choice, dict) or not isinstance(message, dict):
        raise UnavailableError("The endpoint's answer is not a chat completion. Fix: name an OpenAI-compatible server.")
    content = message.get("content")
    thoughts = message.get("reasoning_content")
    text = "".join(part for part in (thoughts, content) if isinstance(part, str))[:_MAX_REPLY_CHARACTERS]
    usage = value.get("usage")
    count = usage.get("prompt_tokens") if isinstance(usage, dict) else None
    logprobs = choice.get("logprobs")
    entries = logprobs.get("content") if isinstance(logprobs, dict) else None
    tokens = [_read_token(entry) for entry in entries] if isinstance(entries, list) else []
    return EndpointReply(
        text=text,
        has_ended=choice.get("finish_reason") == "stop",
        has_thoughts=isinstance(thoughts, str) and bool(thoughts),
        prompt_tokens=count if isinstance(count, int) and not isinstance(count, bool) else None,
        tokens=tuple(token for token in tokens if token) if all(tokens) else (),
    )


def _read_token(entry: object) -> TokenProbabilities | None:
    """Return a token with its alternatives, or None if the entry does not report them."""
    if not isinstance(entry, dict) or not isinstance(entry.get("token"), str):
        return None
    top = entry.get("top_logprobs")
    pairs = [
        (inner["token"], float(inner["logprob"]))
        for inner in (top if isinstance(top, list) else [])[:100]
        if isinstance(inner, dict) and isinstance(inner.get("token"), str) and _is_logprob(inner.get("logprob"))
    ]
    return TokenProbabilities(entry["token"], tuple(pairs)) if pairs else None


def _is_logprob(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and value <= 1e-3


def _read_ids(answer: HttpAnswer) -> tuple[int, ...] | None:
    """Return the token ids of an answer; llama.cpp may give objects with texts."""
    tokens = answer.value.get("tokens") if answer.is_good and isinstance(answer.value, dict) else None
    if not isinstance(tokens, list):
        return None
    ids = [token.get("id") if isinstance(token, dict) else token for token in tokens]
    return tuple(i for i in ids if isinstance(i, int)) if all(type(i) is int for i in ids) else None


def _describe(answer: HttpAnswer) -> str:
    """Return the status and the message of an error, which is a stranger's text."""
    error = answer.value.get("error", answer.value.get("detail")) if isinstance(answer.value, dict) else None
    message = error.get("message") if isinstance(error, dict) else error
    return f"status {answer.status}" + (f", {sanitize_line(message, 200)}" if isinstance(message, str) else "")


def _is_text(value: object) -> bool:
    return isinstance(value, str) and 0 < len(value) <= 1_000
