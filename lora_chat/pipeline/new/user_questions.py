"""Questions to the user in a terminal; elsewhere every question has its default as the answer."""

import sys
from collections.abc import Collection
from dataclasses import dataclass

from lora_chat.errors import UsageError
from lora_chat.system.console import is_terminal, print_message
from lora_chat.system.sanitize import sanitize_line

_MAX_TRIES, _MAX_LINE = 3, 4_000


def is_answered_by_user() -> bool:
    """Return whether a user reads questions and can answer them."""
    return is_terminal(sys.stdin) and is_terminal(sys.stderr)


@dataclass(frozen=True)
class UserQuestions:
    """Questions that are asked, or answered by their defaults."""

    is_asking: bool

    def ask(self, question: str, default: str | None, choices: Collection[str] | None = None) -> str | None:
        """Return the answer to a question, or the default for an empty one.

        With `choices`, only these are accepted. Raises UsageError after several answers that are not.
        """
        if not self.is_asking:
            return default
        hint = f" [{sanitize_line(default, 100)}]" if default is not None else ""
        for _ in range(_MAX_TRIES):
            print_message(f"{question}{hint}")
            line = sys.stdin.readline(_MAX_LINE)
            answer = line.strip()
            if not line or not answer:
                return default
            if choices is None or answer in choices:
                return answer
            print_message(f"{sanitize_line(answer, 100)} is not one of: {', '.join(map(sanitize_line, choices))}")
        raise UsageError("No answer could be used, and nothing was written.")
