"""The session of a server, opened when it is first asked for, and the link that lets a judge in."""

import logging
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

from lora_chat.errors import LoraChatError
from lora_chat.serving.judging.access import JudgeAccess

if TYPE_CHECKING:
    from lora_chat.serving.judging.judge_session import JudgeSession

logger = logging.getLogger(__name__)

NO_RUN = (
    "Nothing can be judged here, because none of the served models is a run of yours: only a run has held-out prompts "
    "and a file for votes. Start one with: lora-chat judge RUN"
)


class JudgeUnavailableError(Exception):
    """A reason why nothing can be judged."""


class JudgeDesk:
    """A session that is opened once, the access to it, and the reason if none exists."""

    def __init__(
        self,
        open_session: "Callable[[], JudgeSession] | None",
        *,
        reason: str = NO_RUN,
        is_only_page: bool = False,
        opens_page: Callable[[str], None] | None = None,
    ) -> None:
        self._open_session, self.reason = open_session, reason
        self._opens_page = opens_page
        """Function that opens the first link in a browser."""
        self.is_only_page = is_only_page
        """Whether the server has no other routes and no other page."""
        self.access = JudgeAccess(self._show_link)
        self._url = ""
        self._lock = threading.Lock()
        self._session: JudgeSession | None = None

    @property
    def is_available(self) -> bool:
        """Return whether there is something to judge."""
        return self._open_session is not None

    @property
    def link(self) -> str:
        """Return the address of the page with the token that opens it once."""
        return f"{self._url}/{self.access.fragment}"

    def announce(self, url: str) -> None:
        """Show the link of a server that answers at this address."""
        self._url = url.rstrip("/")
        if self.is_available:
            self._show_link("")
            if self._opens_page is not None:
                self._opens_page(self.link)

    def _show_link(self, fragment: str) -> None:
        """Show the next link to the user of the terminal; each works once."""
        suffix = " again" if fragment else ""
        logger.info(f"Judge{suffix}: {self.link}  (the link works once)")

    def find_session(self) -> "JudgeSession":
        """Return the session. Raise JudgeUnavailableError with the reason if none exists."""
        with self._lock:
            if self._session is None:
                if self._open_session is None:
                    raise JudgeUnavailableError(self.reason)
                try:
                    self._session = self._open_session()
                except LoraChatError as error:
                    raise JudgeUnavailableError(str(error)) from error
            return self._session
