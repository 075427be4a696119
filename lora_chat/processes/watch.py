"""A thread in each process that shows the others that it lives, and ends this process when another one fails.

Each process writes a beat into the store every half second: a counter, the progress of its main thread, and whether it
works, waits for others or has left. The main thread raises when the watch has seen a failure. A main thread that stays
in a blocking call is interrupted by a signal, and after a grace period the watch ends the process itself.
"""

import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import TYPE_CHECKING

from lora_chat.processes.beats import LEFT, WAITS, WORKS, Beats, WatchLimits
from lora_chat.processes.failure import (
    CONTINUE,
    FAILURE_KEY,
    LOST_EXIT_CODE,
    Failure,
    clone_store,
    describe_disappearance,
    describe_lost,
    record_failure,
)
from lora_chat.processes.peers import Peer
from lora_chat.processes.rank import Rank
from lora_chat.system.activity import ActivityCounter, note_activity
from lora_chat.system.parent import has_parent_ended
from lora_chat.system.signals import SignalInterrupt, ignore_later_signals

if TYPE_CHECKING:
    from torch._C._distributed_c10d import Store

logger = logging.getLogger(__name__)

_POLL_SECONDS = 0.02
_RAISE = "Fix: if the work takes longer, raise --process-timeout; continue with --resume."


class Watch:
    """The watch of one process; its thread has a connection to the store that no other thread uses."""

    def __init__(self, rank: Rank, store: "Store", peers: list[Peer], limits: WatchLimits) -> None:
        self.rank = rank
        self.limits = limits
        self.failure: Failure | None = None
        """The failure that ends all processes."""
        self.report: Callable[[Failure], None] = lambda failure: None
        """Function that prints a failure if this process is the one that prints; used if the main thread hangs."""
        self.store = store
        """Store of this run; other threads use clones."""
        self.machines = [peer.machine for peer in peers]
        self._store = clone_store(store)
        self._peers = peers
        self._beats = [Beats() for _ in peers]
        self._activity = ActivityCounter()
        self._state = WORKS
        self._count = 0
        self._failed_at = 0.0
        self._noticed = False
        """Whether the main thread has raised the failure and is leaving its work."""
        self._interrupts = 0
        self._lost_store = False
        self.prints_without_store = False
        """Whether this process was the first one that ran on its machine when the store was lost."""
        self._stopped = threading.Event()
        self._tick_wanted = threading.Event()
        self._ticked = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="watch of the other processes", daemon=True)

    def start(self) -> None:
        """Begin to watch; the main thread calls it."""
        signal.signal(signal.SIGUSR1, self._interrupt_main)
        self._thread.start()

    def stop(self) -> None:
        """Stop watching."""
        self._stopped.set()
        self._tick_wanted.set()
        self._thread.join(self.limits.root_cause)
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)

    def check(self) -> None:
        """Raise the failure that the watch has seen. The main thread calls it while it waits for others."""
        if self.failure:
            self._noticed = True
            ignore_later_signals()
            raise self.failure.to_error()

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Mark the block as a wait for other processes."""
        note_activity()
        self._state = WAITS
        try:
            yield
        finally:
            self._state = WORKS
            note_activity()

    def look(self, seconds: float = 2.0) -> Failure | None:
        """Look at the other processes now, for at most `seconds`, and return the failure, if there is one."""
        with self._ticked:
            count = self._count
            self._tick_wanted.set()
            # Two rounds, because one may have begun before the other process ended.
            self._ticked.wait_for(lambda: self._count >= count + 2 or self.failure is not None, seconds)
        return self.failure

    def find_cause(self, *, is_certain: bool = True) -> Failure | None:
        """Wait for the failure that broke a connection, and return it.

        If none is seen and it is certain that a connection broke, the process that was silent for longest is the cause.
        """
        deadline = time.monotonic() + self.limits.root_cause
        while self.failure is None and time.monotonic() < deadline:
            self.look()
        if self.failure is None and is_certain:
            silent = max(self._others(), key=lambda number: time.monotonic() - self._beats[number].seen)
            self._fail(
                self._lost(silent, "lost its connection. Fix: check its machine and network; continue with --resume.")
            )
        return self.failure

    def fail(self, failure: Failure) -> Failure:
        """Record a failure of this process. Return the first failure of all processes, which may be another one."""
        self._fail(failure)
        assert self.failure is not None
        return self.failure

    def leave(self) -> None:
        """Show the others that this process has nothing left to do."""
        self._state = LEFT
        self._tick_wanted.set()

    def work(self) -> None:
        """Take back that this process has nothing left to do."""
        self._state = WORKS

    def is_broken(self) -> bool:
        """Return whether another process has failed or has ended on this machine, without waiting for the watch."""
        return self.failure is not None or any(map(self._has_ended, self._others()))

    def is_waited_for(self) -> bool:
        """Return whether all other processes have waited for a while, although this one has left."""
        now = time.monotonic()
        others = [self._beats[number] for number in self._others()]
        return all(beats.state == WAITS and now - beats.moved > self.limits.interrupt for beats in others)

    def have_all_left(self) -> bool:
        """Return whether all processes have left, have ended or do not answer."""
        if self._lost_store:
            return True
        return all(self._beats[number].state == LEFT or self.has_ended(number) for number in self._others())

    def part(self) -> None:
        """Show that this process has seen that all have left; the first one waits, because it may have the store."""
        with suppress(RuntimeError):
            self.store.set(f"parted/{self.rank.index}", "")
            keys = [f"parted/{number}" for number in self._others()]
            deadline = time.monotonic() + self.limits.interrupt
            while self.rank.index == 0 and not self.store.check(keys) and time.monotonic() < deadline:
                time.sleep(self.limits.beat / 10)

    def has_ended(self, number: int) -> bool:
        """Return whether a process has ended, or has not answered for a while."""
        return self._has_ended(number) or time.monotonic() - self._beats[number].seen > self.limits.silence

    def list_ended_peers(self) -> list[Peer]:
        """Return the processes of this machine that have ended."""
        return [self._peers[number] for number in self._others() if self._has_ended(number)]

    def _others(self) -> list[int]:
        return [number for number in range(self.rank.size) if number != self.rank.index]

    def _has_ended(self, number: int) -> bool:
        return self._peers[number].has_ended(self._peers[self.rank.index])

    def _run(self) -> None:
        """Write beats and look at the others until the main thread stops the watch."""
        last = time.monotonic()
        while not self._stopped.is_set():
            if time.monotonic() - last > self.limits.silence / 4:
                for beats in self._beats:  # this process or this machine was suspended
                    beats.forgive()
            last = time.monotonic()
            try:
                self._tick()
            except (RuntimeError, ValueError) as error:  # errors of the store are RuntimeErrors
                if self._stopped.is_set() or self._state == LEFT:
                    self._lost_store = True
                    return
                logger.debug("store: %s", error)
                self._note_lost_store()
                self._set_failure(self._describe_lost_store())
            with self._ticked:
                self._count += 1
                self._ticked.notify_all()
            if self.failure:
                self._press()
            self._tick_wanted.wait(self.limits.beat)
            self._tick_wanted.clear()

    def _tick(self) -> None:
        """Write one beat, read those of the others and the failure."""
        self._store.set(f"beat/{self.rank.index}", f"{self._count} {self._activity.read()} {self._state}")
        keys = [f"beat/{number}" for number in range(self.rank.size)]
        for beats, text in zip(self._beats, self._store.multi_get(keys), strict=True):
            beats.update(text.decode("ascii", "replace"))
        if self.failure is None and self._store.check([FAILURE_KEY]):
            self._set_failure(Failure.from_json(self._store.get(FAILURE_KEY)))
        if self.failure is None and not self._everybody_left():
            self._look_for_lost()

    def _everybody_left(self) -> bool:
        return self._state == LEFT and all(self._beats[number].state == LEFT for number in self._others())

    def _look_for_lost(self) -> None:
        """Record a failure if another process has ended, is silent or makes no progress, or if the parent ended."""
        now = time.monotonic()
        if has_parent_ended():
            self._fail(self._describe_lost_store())
            return
        for number in self._others():
            beats = self._beats[number]
            if self._has_ended(number):
                time.sleep(self.limits.beat)  # the launcher knows the signal, and writes it first
                if not self._store.check([FAILURE_KEY]):
                    self._fail(describe_disappearance(number, self.rank.size))
                return
            if now - beats.seen > self.limits.silence:
                text = (
                    f"has not answered for {self.limits.silence:.0f} s, because it is stopped, or its machine or "
                    "network is down. Fix: check it, then continue with --resume."
                )
                self._fail(self._lost(number, text))
                return
        if now - self._beats[self.rank.index].moved > self.limits.stall:
            self._look_for_stalled(now)

    def _look_for_stalled(self, now: float) -> None:
        """Record a failure if a process for which this one waits makes no progress, or if no process makes any."""
        minutes = f"{self.limits.stall / 60:.3g} minutes"
        stalled = [number for number, beats in enumerate(self._beats) if now - beats.moved > self.limits.stall]
        working = [number for number in stalled if self._beats[number].state == WORKS]
        left = [number for number in self._others() if self._beats[number].state == LEFT]
        if self.rank.index in working:
            # A sharded base is collected from all processes inside of the work, where nothing marks the wait.
            if len(stalled) == self.rank.size and len(working) > 1:
                text = f"No process has made progress for {minutes}. {_RAISE}"
                self._fail(Failure(self.rank.index, LOST_EXIT_CODE, text, is_named=True))
        elif working:
            self._fail(self._lost(working[0], f"has made no progress for {minutes}. {_RAISE}"))
        elif left and self._state == WAITS:
            text = "ended its work while others wait for it. Please report this."
            self._fail(describe_lost(left[0], self.rank.size, text, exit_code=1))
        elif len(stalled) == self.rank.size and self._state == WAITS:
            text = f"All processes wait for each other for {minutes}. Please report this."
            self._fail(Failure(self.rank.index, 1, text, is_named=True))

    def _lost(self, number: int, text: str) -> Failure:
        return describe_lost(number, self.rank.size, text)

    def _note_lost_store(self) -> None:
        """Find out whether this process prints, before the others end."""
        if not self._lost_store:
            own = self._peers[self.rank.index]
            earlier = [peer for peer in self._peers[: self.rank.index] if peer.machine == own.machine]
            # A killed process closes its connections shortly before it has ended; the first one may have the store.
            deadline = time.monotonic() + self.limits.beat
            while self._peers[0] in earlier and not self._peers[0].has_ended(own) and time.monotonic() < deadline:
                time.sleep(_POLL_SECONDS)
            self.prints_without_store = all(peer.has_ended(own) for peer in earlier)
            self._lost_store = True

    def _describe_lost_store(self) -> Failure:
        time.sleep(self.limits.beat)  # an ended program closes its connections before its children get another parent
        if has_parent_ended():
            return self._lost(self.rank.index, f"ends, because the program that started it has ended. {CONTINUE}")
        return self._lost(self.rank.index, f"lost its connection to the first process or to torchrun. {CONTINUE}")

    def _fail(self, failure: Failure) -> None:
        """Record a failure in the store, and take the first one there as the failure of all."""
        with suppress(RuntimeError, ValueError):
            failure = record_failure(self._store, failure)
        self._set_failure(failure)

    def _set_failure(self, failure: Failure) -> None:
        if self.failure is None:
            self._failed_at = time.monotonic()
            self.failure = failure

    def _press(self) -> None:
        """Interrupt a main thread that has not seen the failure, and end this process if it does not leave."""
        assert self.failure is not None
        age = time.monotonic() - self._failed_at
        if self._state == LEFT:
            return
        if age > self.limits.grace:
            self.report(self.failure)
            os._exit(self.failure.exit_code)
        if not self._noticed and age > self.limits.interrupt * (1 + 2 * self._interrupts):
            self._interrupts += 1  # a library may suppress the exception of the first one
            ident = threading.main_thread().ident
            assert ident is not None
            signal.pthread_kill(ident, signal.SIGUSR1)

    def _interrupt_main(self, number: int, frame: FrameType | None) -> None:
        """Raise in the main thread, which has not seen the failure yet."""
        if self.failure and self._state != LEFT and not self._noticed:
            raise SignalInterrupt(self.failure.signal_number or signal.SIGTERM)
