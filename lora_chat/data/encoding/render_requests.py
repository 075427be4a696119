"""Chats to render, and the requests that carry them to the template worker."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from lora_chat.data.dialogue import ChatMessage, ToolDescription
from lora_chat.data.encoding.template_worker import RenderRequest, RequestedJob

Messages = Sequence[ChatMessage]

_BASE_TIMEOUT_SECONDS, _CHARACTERS_PER_SECOND = 8.0, 200_000
"""Timeout of a request, in seconds, plus a second for each N characters; real templates take a hundredth of it."""
_MAX_REQUEST_CHARACTERS = 1 << 22
"""Most characters of messages in one request, unless a single chat has more."""
_BASE_ANSWER_BYTES = 1 << 26
"""Largest answer, in bytes, in addition to 8 times the request."""


@dataclass(frozen=True)
class RenderJob:
    """Chats that are rendered with the same arguments."""

    chats: Sequence[Messages]
    add_generation_prompt: bool
    tools: Sequence[ToolDescription] | None = None
    arguments: Mapping[str, object] = field(default_factory=dict)
    """Further variables of the template, such as `enable_thinking`."""
    stepwise: bool = False
    """Whether the result has the pieces of a single chat (`stepwise_render`) instead of its text."""


def split_into_requests(
    template: str, special: Mapping[str, object], jobs: Sequence[RenderJob]
) -> Iterator[tuple[RenderRequest, list[int]]]:
    """Yield the jobs in requests of bounded size, each with the numbers of the jobs that its parts belong to."""
    pending = _RequestBuilder(template, special)
    sizes: dict[int, int] = {}  # by id, which is valid because the caller keeps the messages
    for number, job in enumerate(jobs):
        tools = count_characters(job.tools) if job.tools else 0
        for chat in job.chats:
            for message in chat:
                if id(message) not in sizes:
                    sizes[id(message)] = count_characters(message)
            size = tools + sum([sizes[id(message)] for message in chat])
            if pending.size + size > _MAX_REQUEST_CHARACTERS and pending.job_numbers:
                yield pending.build(), pending.job_numbers
                pending = _RequestBuilder(template, special)
            pending.add(number, chat, job, size)
    if pending.job_numbers:
        yield pending.build(), pending.job_numbers


class _RequestBuilder:
    """A request in which each message is sent once, although many chats contain it."""

    def __init__(self, template: str, special: Mapping[str, object]) -> None:
        self.job_numbers: list[int] = []
        self.size = 0
        self._template, self._special = template, dict(special)
        self._message_numbers: dict[int, int] = {}
        self._messages: list[ChatMessage] = []
        self._tools: list[Sequence[ToolDescription]] = []
        self._jobs: list[RequestedJob] = []

    def add(self, owner: int, chat: Messages, job: RenderJob, size: int) -> None:
        """Add a chat of a job; the chats of one job follow one another."""
        if not self.job_numbers or self.job_numbers[-1] != owner:
            if job.tools:
                self._tools.append(job.tools)
            tools_index = len(self._tools) - 1 if job.tools else None
            self._jobs.append(
                {
                    "chats": [],
                    "reply_follows": job.add_generation_prompt,
                    "tools": tools_index,
                    "arguments": dict(job.arguments),
                    "stepwise": job.stepwise,
                }
            )
            self.job_numbers.append(owner)
        self._jobs[-1]["chats"].append(([self._register_message(message) for message in chat], size))
        self.size += size

    def build(self) -> RenderRequest:
        """Return the request with its limits."""
        size = self.size + len(self._template)
        return {
            "template": self._template,
            "special": self._special,
            "messages": self._messages,
            "tools": self._tools,
            "jobs": self._jobs,
            "size": size,
            "seconds": _BASE_TIMEOUT_SECONDS + size / _CHARACTERS_PER_SECOND,
            "most": _BASE_ANSWER_BYTES + 8 * size,
        }

    def _register_message(self, message: ChatMessage) -> int:
        """Return the number of a message, which is added if it is new."""
        number = self._message_numbers.get(id(message))
        if number is None:
            number = self._message_numbers[id(message)] = len(self._messages)
            self._messages.append(message)
        return number


def count_characters(value: object) -> int:
    """Count the characters of a message or of tools, approximately."""
    if isinstance(value, str):
        return len(value) + 2
    if isinstance(value, dict):
        return sum(len(key) + 4 + count_characters(inner) for key, inner in value.items())
    return 2 + sum(map(count_characters, value)) if isinstance(value, list | tuple) else 8
