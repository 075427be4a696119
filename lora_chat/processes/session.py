"""The life of a process in a group: join, work, and leave with the one message that matters."""

import logging
import os
import re
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NoReturn

from lora_chat.errors import ReportedError, StoppedError
from lora_chat.processes.beats import WatchLimits
from lora_chat.processes.connect import ConnectError, LostStoreError, join
from lora_chat.processes.failure import PRINTED_KEY, Failure, OtherProcessError, key_prefix
from lora_chat.processes.peers import remove_leftovers
from lora_chat.processes.rank import Rank
from lora_chat.processes.watch import Watch
from lora_chat.system.console import print_error, restore_output
from lora_chat.system.signals import ignore_signals

_POLL_SECONDS = 0.05
_BROKEN_CONNECTION = re.compile(
    r"closed by peer|reset by peer|Broken pipe|Connection (closed|refused|was)|Socket|NCCL|gloo|ncclRemoteError",
    re.IGNORECASE,
)
"""Errors of torch.distributed when another process has ended."""


@dataclass(frozen=True)
class SessionTexts:
    """The texts of the command, which layers below it do not know."""

    describe: Callable[[BaseException], Failure | None]
    """Function that returns the failure of an error; None for a bug."""
    hint: Callable[[], str]
    """Function that returns the command to continue, or an empty text."""


@contextmanager
def joined_processes(rank: Rank, limits: WatchLimits, texts: SessionTexts) -> Iterator[Watch]:
    """Join the other processes for the block. Its failure, and each other's, ends all processes with one message.

    Raise ReportedError after a failure; the message has been printed then.
    """
    try:
        watch = join(rank, key_prefix(os.environ), limits)
    except OtherProcessError as error:
        if rank.index == 0:
            print_error(error.failure.format(rank.size, rank.index), label="")
        raise ReportedError(error.exit_code) from None
    except ConnectError as error:
        # There is nobody to agree with, so one process of each machine prints; the first one may have ended.
        if rank.local_index == 0 or (rank.local_index == 1 and isinstance(error, LostStoreError)):
            restore_output()
        raise
    session = _Session(rank, watch, texts)
    watch.report = session.print_if_first
    watch.start()
    try:
        yield watch
        watch.leave()
        while not watch.have_all_left():
            watch.check()
            time.sleep(_POLL_SECONDS)
    except BaseException as error:
        ignore_signals()
        raise ReportedError(session.end(error)) from error
    ignore_signals()
    watch.part()
    watch.stop()


class _Session:
    """The end of one process after a failure."""

    def __init__(self, rank: Rank, watch: Watch, texts: SessionTexts) -> None:
        self._rank = rank
        self._watch = watch
        self._texts = texts

    def end(self, error: BaseException) -> int:
        """Show the failure to the others, print it if this process is the one that prints, and return the exit code."""
        agreed = self._rank.index > 0 and isinstance(error, StoppedError) and self._wait_for_agreed_stop()
        failure = self._describe(error) if agreed else self._find_failure(error)
        text = self._format(failure, error)
        self._watch.leave()
        if not agreed and (self._rank.index == 0 or self._waits_for_nothing()):
            self._print(text)
        deadline = time.monotonic() + self._watch.limits.grace
        while not self._watch.have_all_left() and time.monotonic() < deadline:
            time.sleep(_POLL_SECONDS)
        self._watch.stop()
        for peer in self._watch.list_ended_peers():
            remove_leftovers(peer.pid)
        return failure.exit_code

    def _wait_for_agreed_stop(self) -> bool:
        """Wait until the first process has saved the adapter and ends too. Return False if it did not agree to stop."""
        self._watch.leave()
        while not self._watch.have_all_left():
            if self._watch.failure or self._watch.is_waited_for():
                self._watch.work()
                return False
            time.sleep(_POLL_SECONDS)
        return True

    def print_if_first(self, failure: Failure) -> None:
        """Print the failure, if this is the process that prints; the main thread hangs."""
        if self._rank.index == 0 or self._watch.has_ended(0):
            self._print(self._format(failure, None))

    def _find_failure(self, error: BaseException) -> Failure:
        """Return the failure of all processes: another process's, or this one's."""
        if self._watch.failure is None:
            if isinstance(error, RuntimeError) and _BROKEN_CONNECTION.search(str(error)):
                self._watch.find_cause(is_certain=False)  # a collective of PyTorch, of which the group does not know
            elif isinstance(error, KeyboardInterrupt | StoppedError) or self._texts.describe(error) is None:
                self._watch.look()  # torchrun stops a process with a signal when another one has ended
        return self._watch.failure or self._watch.fail(self._describe(error))

    def _describe(self, error: BaseException) -> Failure:
        described = self._texts.describe(error)
        if described:
            return described
        trace = "".join(traceback.format_exception(error)).rstrip("\n")
        return Failure(self._rank.index, 1, trace, label="")

    def _format(self, failure: Failure, error: BaseException | None) -> str:
        """Return the message as this process prints it."""
        if failure.rank == self._rank.index:
            return f"{failure.label}{failure.text}"
        own = self._texts.describe(error) if error and not isinstance(error, OtherProcessError) else None
        if own and own.exit_code == failure.exit_code and self._rank.index == 0:
            return f"{own.label}{own.text}"  # all processes have the same problem, and the first knows most about it
        hint = self._texts.hint()
        return failure.format(self._rank.size, self._rank.index) + (f"\n{hint}" if hint else "")

    def _waits_for_nothing(self) -> bool:
        """Wait until the first process has printed; return True if it cannot."""
        deadline = time.monotonic() + self._watch.limits.grace
        while time.monotonic() < deadline:
            try:
                if self._watch.store.check([PRINTED_KEY]):
                    return False
            except RuntimeError:  # the store has ended, so one process of each machine prints
                return self._watch.prints_without_store
            if self._watch.has_ended(0):
                return True
            time.sleep(_POLL_SECONDS)
        return True

    def _print(self, text: str) -> None:
        """Print the message unless another process has done it."""
        own = str(self._rank.index)
        try:
            if self._watch.store.compare_set(PRINTED_KEY, "", own).decode() != own:
                return
        except RuntimeError:  # the store has ended
            self._watch.look()
            if not self._watch.prints_without_store:
                return
        restore_output()
        print_error(text, label="")


def end_process(exit_code: int) -> NoReturn:
    """End this process now, because native threads may keep the interpreter from ending, or take long to end it."""
    logging.shutdown()
    os._exit(exit_code)
