"""Conversation in the terminal or through a pipe: one line in, one reply out."""

import logging
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from lora_chat.config.generation_section import GREEDY, GenerationSection
from lora_chat.data.encoding.chat_template import render_ids
from lora_chat.data.encoding.turns import TurnReader
from lora_chat.inference.generation import stream_reply
from lora_chat.system.console import ReplyPrinter, print_json
from lora_chat.system.signals import signal_number

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

HELP = "/reset starts a new conversation, /system TEXT sets the system message, /quit ends."


@dataclass
class Conversation:
    """Messages so far, with an optional system message at the beginning."""

    system: str | None = None
    turns: list[dict[str, object]] = field(default_factory=list)

    @property
    def messages(self) -> list[dict[str, object]]:
        """Return all messages in the form that chat templates take."""
        head: list[dict[str, object]] = [{"role": "system", "content": self.system}] if self.system is not None else []
        return head + self.turns


class ChatSession:
    """Conversation that answers lines of text and writes replies piece by piece."""

    def __init__(
        self,
        model: "PreTrainedModel",
        tokenizer: "PreTrainedTokenizerBase",
        stop_ids: Sequence[int],
        system: str | None,
        max_new_tokens: int,
        as_json: bool,
        generation: GenerationSection = GREEDY,
    ) -> None:
        self._model, self._tokenizer, self._stop_ids = model, tokenizer, stop_ids
        self._reader = TurnReader(tokenizer, stop_ids)
        self._max_new_tokens, self._as_json = max_new_tokens, as_json
        self._generation, self._answered = generation, 0
        self._initial_system = system
        self._conversation = Conversation(system)
        positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
        self._positions = int(positions) if positions else None

    def run(self) -> None:
        """Answer lines until /quit or the end of the input."""
        terminal = sys.stdin.isatty()
        if terminal:
            import readline  # noqa: F401  # arrow keys and history for input()

            logger.info(HELP)
        while True:
            try:
                line = input("> ") if terminal else sys.stdin.readline()
            except EOFError:
                return
            except KeyboardInterrupt as error:
                if signal_number(error) != signal.SIGINT:
                    raise
                logger.info("\n/quit ends the conversation.")
                continue
            if not terminal and not line:
                return
            if not self.handle_line(line.strip()):
                return

    def handle_line(self, line: str) -> bool:
        """Run the command in a line, or answer it. Return False when the conversation ends."""
        command, _, rest = line.partition(" ")
        if command == "/quit":
            return False
        if command == "/reset":
            self._conversation = Conversation(self._conversation.system)
            logger.info("Started a new conversation.")
        elif command == "/system":
            self._conversation = Conversation(rest.strip() or self._initial_system)
            logger.info("Started a new conversation with this system message.")
        elif line.startswith("/"):
            logger.info(f"Unknown command {command}. {HELP}")
        elif line:
            self._answer(line)
        return True

    def _answer(self, line: str) -> None:
        """Generate and print the reply to a message. Ctrl-C stops the reply and keeps the part before it."""
        self._conversation.turns.append({"role": "user", "content": line})
        prompt = self._fit_prompt()
        if prompt is None:
            self._conversation.turns.pop()
            logger.info("The message exceeds the context window. Fix: shorten it, or use /reset.")
            return
        pieces: list[str] = []
        printer = ReplyPrinter()

        def write(text: str) -> None:
            pieces.append(text)
            if not self._as_json:
                printer.write(text)

        interrupted = False
        number = self._answered
        self._answered += 1  # each reply draws other random numbers, also after /reset
        try:
            stream_reply(
                self._model,
                self._tokenizer,
                prompt,
                self._stop_ids,
                self._max_new_tokens,
                write,
                self._generation,
                number,
            )
        except KeyboardInterrupt as error:
            if signal_number(error) != signal.SIGINT:
                raise
            interrupted = True
        reply = "".join(pieces).strip()
        if self._as_json:
            print_json({"role": "assistant", "content": reply})
        else:
            printer.close()
        if interrupted:
            logger.info("(reply interrupted)")
        self._conversation.turns.append(self._reader.parse_reply(self._tokenizer.decode(prompt[-16:]), reply))

    def _fit_prompt(self) -> list[int] | None:
        """Return the prompt's ids, without the oldest turns if a reply would not fit; None if it never fits."""
        dropped = 0
        while True:
            ids = render_ids(self._tokenizer, self._conversation.messages, add_generation_prompt=True)
            if self._positions is None or len(ids) + self._max_new_tokens <= self._positions:
                if dropped:
                    logger.info(f"(the oldest {dropped} messages do not fit and were left out)")
                return ids
            if len(self._conversation.turns) <= 2:
                return None
            del self._conversation.turns[:2]
            dropped += 2
