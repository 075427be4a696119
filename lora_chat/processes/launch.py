"""`--processes N`: torchrun's agent for this machine starts N processes of the same command."""

import logging
import os
import secrets
import signal
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING

from lora_chat.errors import UnavailableError, UsageError
from lora_chat.processes.agent import (
    kill_processes,
    make_agent,
    make_rendezvous,
    open_local_store,
    send_signal,
    start_timer,
)
from lora_chat.processes.failure import FAILURE_KEY, PRINTED_KEY, Failure, describe_end, key_prefix
from lora_chat.processes.peers import remove_leftovers
from lora_chat.processes.rank import LAUNCHER_VARIABLE, RESTART_VARIABLE, RUN_VARIABLE
from lora_chat.system.console import print_message
from lora_chat.system.signals import STOP_SIGNALS
from lora_chat.system.worker import interpreter_command

if TYPE_CHECKING:
    from torch._C._distributed_c10d import Store
    from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent

MAX_PROCESSES = 64
_SECONDS_AFTER_SECOND_SIGNAL = 10.0
"""Longest time that processes get to stop immediately."""


def launch_processes(count: int, arguments: Sequence[str]) -> int:
    """Run `lora-chat ARGUMENTS` in `count` processes of this machine and return the exit code of the run."""
    if os.name != "posix":
        raise UnavailableError("Several processes need Linux or macOS. Fix: leave --processes out.")
    from torch._C._distributed_c10d import PrefixStore

    logging.getLogger("torch").setLevel(logging.CRITICAL)  # because the processes report their failure
    store, port = open_local_store()
    run_id = secrets.token_hex(8)
    prefixed = PrefixStore(key_prefix({RUN_VARIABLE: run_id, RESTART_VARIABLE: "0"}), store)
    os.environ.update(_child_variables(count, os.environ))
    agent = make_agent(count, [*interpreter_command(), *arguments], make_rendezvous(store, port, run_id), prefixed)
    with _forwarded_signals(agent) as signals:
        try:
            codes = _run_agent(agent, count)
        finally:
            kill_processes(agent)
            for worker in agent.get_worker_group().workers:
                if isinstance(worker.id, int):
                    remove_leftovers(worker.id)
    return _finish(prefixed, codes, signals)


def remove_option(arguments: Sequence[str], option: str) -> list[str]:
    """Return the arguments without an option and its value."""
    end = list(arguments).index("--") if "--" in arguments else len(arguments)
    kept_arguments: list[str] = []
    skip = False
    for argument in arguments[:end]:
        if skip or argument.startswith(f"{option}="):
            skip = False
        elif argument == option:
            skip = True
        else:
            kept_arguments.append(argument)
    return [*kept_arguments, *arguments[end:]]


def check_count(count: int, environment: Mapping[str, str]) -> None:
    """Raise UsageError for a number of processes that cannot be started."""
    if not 1 <= count <= MAX_PROCESSES:
        raise UsageError(f"--processes {count}: a number from 1 to {MAX_PROCESSES} is needed. Fix: --processes 2.")
    if environment.get("LOCAL_RANK", "").strip() not in ("", "-1"):
        raise UsageError(
            "--processes starts the processes itself, and torchrun or accelerate launch has started this one already. "
            "Fix: leave --processes out."
        )


def _child_variables(count: int, environment: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that all processes get in addition to this one's."""
    variables = {LAUNCHER_VARIABLE: str(os.getpid())}
    if not environment.get("OMP_NUM_THREADS", "").strip():
        variables["OMP_NUM_THREADS"] = str(max(1, _count_cores() // count))
    loopback = next((name for _, name in socket.if_nameindex() if name in ("lo", "lo0")), None)
    if loopback and not environment.get("GLOO_SOCKET_IFNAME"):
        variables["GLOO_SOCKET_IFNAME"] = loopback
    return variables


def _count_cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _run_agent(agent: "LocalElasticAgent", count: int) -> list[int]:
    """Run the processes and return their return codes, which are negative after a signal."""
    result = agent.run()
    failed = {rank: failure.exitcode for rank, failure in result.failures.items()}
    return [failed.get(rank, 0) for rank in range(count)]


class _Signals:
    """The stop signals that this process has received."""

    def __init__(self) -> None:
        self.numbers: list[int] = []


@contextmanager
def _forwarded_signals(agent: "LocalElasticAgent") -> Iterator[_Signals]:
    """Send stop signals of this process to all processes; they decide when to end.

    A terminal sends Ctrl-C to this process only, because torchrun's agent starts each process in a new session. After a
    second signal the processes have a few seconds to end, and a third one kills them.
    """
    signals = _Signals()

    def forward(number: int, frame: FrameType | None) -> None:
        signals.numbers.append(number)
        if len(signals.numbers) > 2:
            kill_processes(agent)
        elif len(signals.numbers) == 2:
            start_timer(_SECONDS_AFTER_SECOND_SIGNAL, lambda: kill_processes(agent))
        send_signal(agent, number)

    previous_handlers = {number: signal.signal(number, forward) for number in STOP_SIGNALS}
    try:
        yield signals
    finally:
        for number, handler in previous_handlers.items():
            signal.signal(number, handler)


def _finish(store: "Store", codes: Sequence[int], signals: _Signals) -> int:
    """Return the exit code of the run, and print the failure if every process that could print it was killed.

    The first process ends last, so its exit code is the run's unless it was killed.
    """
    if codes[0] >= 0:
        return codes[0]
    failure = _read_failure(store) or describe_end(0, len(codes), codes[0])
    if signals.numbers and not store.check([PRINTED_KEY]):
        failure = Failure(0, 128 + signals.numbers[0], "Stopped.", label="", signal_number=signals.numbers[0])
    if not store.check([PRINTED_KEY]):
        print_message(failure.format(len(codes), -1))
    return failure.exit_code


def _read_failure(store: "Store") -> Failure | None:
    """Return the failure that a process has recorded."""
    try:
        return Failure.from_json(store.get(FAILURE_KEY)) if store.check([FAILURE_KEY]) else None
    except ValueError:
        return None
