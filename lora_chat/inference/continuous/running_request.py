"""Requests that wait for their turn and requests that are being answered."""

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from lora_chat.inference.continuous.prefix_store import ReadPrompt
from lora_chat.inference.continuous.request import Finish, FinishReason, GeneratedToken, GenerationRequest
from lora_chat.inference.continuous.token_choice import TokenChooser
from lora_chat.inference.continuous.token_pool import TokenRange

logger = logging.getLogger(__name__)

Receiver = Callable[[GeneratedToken | Finish], None]


@dataclass(eq=False)
class Ticket:
    """A submitted request."""

    request: GenerationRequest
    receive: Receiver
    cancelled: threading.Event = field(default_factory=threading.Event)
    is_finished: bool = False
    reused_tokens: int = 0
    """Tokens of the prompt whose keys and values were there already, known when the first token arrives."""

    def cancel(self) -> None:
        """End the reply at its next token."""
        self.cancelled.set()

    def find_end(self) -> FinishReason | None:
        """Return why the reply must end now, if it must."""
        deadline = self.request.deadline
        if self.cancelled.is_set():
            return "cancelled"
        if deadline is not None and time.monotonic() >= deadline:
            return "deadline"
        return None

    def pass_on(self, token: GeneratedToken) -> None:
        """Hand a token to the receiver. A receiver that fails ends its own reply only."""
        try:
            self.receive(token)
        except Exception:
            logger.exception("The receiver of a reply failed.")
            self.cancel()

    def finish(self, reason: FinishReason, message: str = "") -> None:
        """Tell the receiver once that the reply ended."""
        if self.is_finished:
            return
        self.is_finished = True
        try:
            self.receive(Finish(reason, message))
        except Exception:
            logger.exception("The receiver of a reply failed.")


@dataclass(eq=False)
class RunningRequest:
    """A request whose prompt was read."""

    ticket: Ticket
    tokens: TokenRange
    """Range of its keys and values."""
    chooser: TokenChooser
    read: ReadPrompt | None = None
    """The prompt with its logits, after it was read."""
    num_generated: int = 0
    last_token: int = 0

    @property
    def request(self) -> GenerationRequest:
        """Return the request."""
        return self.ticket.request

    @property
    def position(self) -> int:
        """Return the position of the last token, whose keys and values the next step computes."""
        return len(self.request.prompt) + self.num_generated - 1

    def accept(self, token: GeneratedToken) -> FinishReason | None:
        """Take the next token and pass it on. Return why the reply ends with it, if it does."""
        if token.token in self.request.stop_ids:
            return "stop"
        self.num_generated += 1
        self.last_token = token.token
        self.ticket.pass_on(token)
        return "length" if self.num_generated >= self.request.max_new_tokens else None
