"""torchrun's agent for this machine, in this process.

Its store listens on the loopback interface only, at a port that the system chooses, so that two runs never meet and
nobody on the network reaches it.
"""

import os
import signal
import socket
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from lora_chat.processes.failure import describe_end, record_failure
from lora_chat.system.signals import STOP_SIGNALS

if TYPE_CHECKING:
    from torch._C._distributed_c10d import Store, TCPStore
    from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
    from torch.distributed.elastic.rendezvous import RendezvousHandler

LOOPBACK = "127.0.0.1"
_STORE_TIMEOUT = timedelta(seconds=60)
_SECONDS_AFTER_FAILURE = 20.0
"""Longest time that processes get to end after one has failed; they end themselves earlier unless they are stopped."""


def open_local_store() -> "tuple[TCPStore, int]":
    """Start a store that only this machine reaches, at a free port."""
    from torch._C._distributed_c10d import TCPStore

    listener = socket.socket()
    listener.bind((LOOPBACK, 0))
    listener.listen(128)
    port = listener.getsockname()[1]
    store = TCPStore(
        LOOPBACK,
        port,
        None,
        True,
        _STORE_TIMEOUT,
        wait_for_workers=False,
        master_listen_fd=listener.detach(),
    )
    return store, port


def make_rendezvous(store: "TCPStore", port: int, run_id: str) -> "RendezvousHandler":
    """Return the rendezvous of a single agent with the store of this process."""
    from torch._C._distributed_c10d import PrefixStore
    from torch.distributed.elastic.rendezvous import RendezvousHandler, RendezvousInfo, RendezvousStoreInfo

    class LocalRendezvous(RendezvousHandler):
        """A rendezvous without other machines."""

        use_agent_store = True

        def get_backend(self) -> str:
            return "static"

        def next_rendezvous(self) -> RendezvousInfo:
            return RendezvousInfo(PrefixStore("agent", store), 0, 1, RendezvousStoreInfo(LOOPBACK, port))

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


def make_agent(
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
            codes = {worker.global_rank: exit_code_of(worker.id) for worker in worker_group.workers}
            failed = [(rank, code) for rank, code in codes.items() if code]
            for rank, code in failed:
                record_failure(store, describe_end(rank, count, code))
            if failed:
                start_timer(_SECONDS_AFTER_FAILURE, lambda: kill_processes(self))
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


def exit_code_of(pid: int) -> int | None:
    """Return how a child ended without reaping it: its exit code, a negative signal, or None while it runs."""
    try:
        status = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT | os.WNOHANG)
    except ChildProcessError:
        return None
    if status is None or status.si_pid == 0:
        return None
    return status.si_status if status.si_code == os.CLD_EXITED else -status.si_status


def start_timer(seconds: float, function: Callable[[], None]) -> None:
    """Call a function later in another thread, which does not keep this process from ending."""
    timer = threading.Timer(seconds, function)
    timer.daemon = True
    timer.start()


def send_signal(agent: "LocalElasticAgent", number: int) -> None:
    """Send a signal to the processes that run."""
    for worker in agent.get_worker_group().workers:
        if isinstance(worker.id, int) and exit_code_of(worker.id) is None:
            with suppress(ProcessLookupError):
                os.kill(worker.id, number)


def kill_processes(agent: "LocalElasticAgent") -> None:
    """Kill the processes that still run, and the processes that they have started."""
    for worker in agent.get_worker_group().workers:
        if isinstance(worker.id, int):
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(worker.id, signal.SIGKILL)  # the agent starts each in a session, whose leader it is
