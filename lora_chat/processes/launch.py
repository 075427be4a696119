"""`--processes N`: torchrun's agent for this machine starts N processes of the same command.

The agent runs in this process. Its store listens on the loopback interface only, at a port that the system chooses, so
that two runs never meet and nobody on the network reaches it.
"""

import logging
import os
import secrets
import signal
import socket
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from types import FrameType
from typing import TYPE_CHECKING, Any

from lora_chat.errors import UnavailableError, UsageError
from lora_chat.processes.failure import (
    FAILURE_KEY,
    PRINTED_KEY,
    Failure,
    describe_end,
    key_prefix,
    record_failure,
)
from lora_chat.processes.rank import RESTART_VARIABLE, RUN_VARIABLE
from lora_chat.system.console import print_message
from lora_chat.system.signals import STOP_SIGNALS
from lora_chat.system.worker import interpreter_command

if TYPE_CHECKING:
    from torch._C._distributed_c10d import Store, TCPStore
    from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
    from torch.distributed.elastic.rendezvous import RendezvousHandler

LAUNCHER_VARIABLE = "LORA_CHAT_LAUNCHER_PID"
"""Environment variable with the number of the process that started this one."""
MAX_PROCESSES = 64
_LOOPBACK = "127.0.0.1"
_STORE_TIMEOUT = timedelta(seconds=60)
_SECONDS_AFTER_SECOND_SIGNAL = 10.0
"""Longest time that processes get to stop immediately."""


def launch_processes(count: int, arguments: Sequence[str]) -> int:
    """Run `lora-chat ARGUMENTS` in `count` processes of this machine and return the exit code of the run."""
    if os.name != "posix":
        raise UnavailableError("Several processes need Linux or macOS. Fix: leave --processes out.")
    from torch._C._distributed_c10d import PrefixStore

    logging.getLogger("torch").setLevel(logging.CRITICAL)  # because the processes report their failure
    store, port = _open_store()
    run_id = secrets.token_hex(8)
    prefixed = PrefixStore(key_prefix({RUN_VARIABLE: run_id, RESTART_VARIABLE: "0"}), store)
    os.environ.update(_child_variables(count, os.environ))
    agent = _make_agent(count, [*interpreter_command(), *arguments], _make_rendezvous(store, port, run_id), prefixed)
    with _forwarded_signals(agent) as signals:
        try:
            codes = _run_agent(agent, count)
        finally:
            _kill(agent)
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


def _open_store() -> "tuple[TCPStore, int]":
    """Start a store that only this machine reaches, at a free port."""
    from torch._C._distributed_c10d import TCPStore

    listener = socket.socket()
    listener.bind((_LOOPBACK, 0))
    listener.listen(128)
    port = listener.getsockname()[1]
    store = TCPStore(
        _LOOPBACK,
        port,
        None,
        True,
        _STORE_TIMEOUT,
        wait_for_workers=False,
        master_listen_fd=listener.detach(),
    )
    return store, port


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


def _make_rendezvous(store: "TCPStore", port: int, run_id: str) -> "RendezvousHandler":
    """Return the rendezvous of a single agent with the store of this process."""
    from torch._C._distributed_c10d import PrefixStore
    from torch.distributed.elastic.rendezvous import RendezvousHandler, RendezvousInfo, RendezvousStoreInfo

    class LocalRendezvous(RendezvousHandler):
        """A rendezvous without other machines."""

        use_agent_store = True

        def get_backend(self) -> str:
            return "static"

        def next_rendezvous(self) -> RendezvousInfo:
            return RendezvousInfo(PrefixStore("agent", store), 0, 1, RendezvousStoreInfo(_LOOPBACK, port))

        def is_closed(self) -> bool:
            return False

        def set_closed(self) -> None:
            """Do nothing, because no other machine joins."""

        def num_nodes_waiting(self) -> int:
            return 0

        def get_run_id(self) -> str:
            return run_id

        def shutdown(self) -> bool:
            return True

    return LocalRendezvous()


def _make_agent(
    count: int, command: Sequence[str], rendezvous: "RendezvousHandler", store: "Store"
) -> "LocalElasticAgent":
    """Return torchrun's agent, which records the end of a process before it stops the others."""
    from torch.distributed.elastic.agent.server.api import RunResult, WorkerGroup, WorkerSpec
    from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs

    class RecordingAgent(LocalElasticAgent):
        """An agent that shows the other processes how a process ended."""

        def _start_workers(self, worker_group: WorkerGroup) -> "dict[int, Any]":
            # A process inherits the blocked signals and unblocks them when it can handle them.
            signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
            try:
                started: dict[int, Any] = super()._start_workers(worker_group)
                for worker in worker_group.workers:
                    worker.id = started[worker.local_rank]  # signals are forwarded to them from now on
                return started
            finally:
                signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)

        def _monitor_workers(self, worker_group: WorkerGroup) -> RunResult:
            for worker in worker_group.workers:
                code = _exit_code_of(worker.id)
                if code:
                    record_failure(store, describe_end(worker.global_rank, code))
            result: RunResult = super()._monitor_workers(worker_group)
            return result

    # The agent's own handlers would end it at the second signal, before the processes have ended.
    os.environ["TORCHELASTIC_SIGNALS_TO_HANDLE"] = "SIGQUIT"
    spec = WorkerSpec(
        role="lora_chat",
        local_world_size=count,
        entrypoint=command[0],
        args=tuple(command[1:]),
        rdzv_handler=rendezvous,
        max_restarts=0,
        monitor_interval=0.1,
    )
    return RecordingAgent(spec, logs_specs=DefaultLogsSpecs(log_dir=os.devnull), start_method="spawn")


def _exit_code_of(pid: int) -> int | None:
    """Return how a child ended without reaping it: its exit code, a negative signal, or None while it runs."""
    try:
        status = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT | os.WNOHANG)
    except ChildProcessError:
        return None
    if status is None or status.si_pid == 0:
        return None
    return status.si_status if status.si_code == os.CLD_EXITED else -status.si_status


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
            _kill(agent)
        elif len(signals.numbers) == 2:
            timer = threading.Timer(_SECONDS_AFTER_SECOND_SIGNAL, _kill, [agent])
            timer.daemon = True
            timer.start()
        _send(agent, number)

    previous_handlers = {number: signal.signal(number, forward) for number in STOP_SIGNALS}
    try:
        yield signals
    finally:
        for number, handler in previous_handlers.items():
            signal.signal(number, handler)


def _send(agent: "LocalElasticAgent", number: int) -> None:
    """Send a signal to the processes that run."""
    for worker in agent.get_worker_group().workers:
        if isinstance(worker.id, int) and _exit_code_of(worker.id) is None:
            with suppress(ProcessLookupError):
                os.kill(worker.id, number)


def _kill(agent: "LocalElasticAgent") -> None:
    """Kill the processes that still run."""
    _send(agent, signal.SIGKILL)


def _finish(store: "Store", codes: Sequence[int], signals: _Signals) -> int:
    """Return the exit code of the run, and print the failure if every process that could print it was killed."""
    if codes[0] >= 0 and not (codes[0] == 0 and any(codes)):
        return codes[0]
    if codes[0] == 0 and store.check([FAILURE_KEY]) is False:
        return 0
    failure = _read_failure(store) or describe_end(*next((rank, code) for rank, code in enumerate(codes) if code))
    if signals.numbers and codes[0] < 0:
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
