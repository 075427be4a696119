"""The connections of the processes: torch.distributed's rendezvous, the watch, and the default group."""

import os
import socket
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from typing import TYPE_CHECKING, Literal, TypeVar

from lora_chat.errors import LoraChatError, UnavailableError, UsageError, first_line
from lora_chat.processes.beats import WORKS, WatchLimits
from lora_chat.processes.failure import (
    FAILURE_KEY,
    LOST_EXIT_CODE,
    PRINTED_KEY,
    Failure,
    OtherProcessError,
    clone_store,
    record_failure,
)
from lora_chat.processes.peers import Peer, describe_this_process
from lora_chat.processes.rank import LAUNCHER_VARIABLE, Rank, remove_group_variables
from lora_chat.processes.torch_group import TorchGroup
from lora_chat.processes.watch import Watch
from lora_chat.system.parent import has_parent_ended
from lora_chat.system.signals import signal_number

if TYPE_CHECKING:
    from torch._C._distributed_c10d import Store

_Result = TypeVar("_Result")
_CONNECT_SECONDS = 600.0
"""Longest wait for the other processes at the start, in seconds; machines of a cluster start at different times."""
_AGENT_SECONDS = 30.0
"""Longest wait for torchrun's agent, in seconds, because it starts before the processes."""
_COLLECTIVE_TIMEOUT = timedelta(days=30)
"""Time limit of torch.distributed, which the watch replaces: a process may work for hours while others wait."""
_POLL_SECONDS = 0.05
_LOST = "Fix: continue with --resume."


class ConnectError(LoraChatError):
    """Processes that cannot reach each other."""

    exit_code = LOST_EXIT_CODE


class LostStoreError(ConnectError):
    """An end of the first process, or of torchrun, before all processes were connected."""


def join(rank: Rank, prefix: str, limits: WatchLimits, connect_seconds: float = _CONNECT_SECONDS) -> Watch:
    """Find the other processes and return the watch of this one, which has not been started."""
    store = _open_store(rank, prefix, connect_seconds)
    store.set_timeout(timedelta(seconds=limits.silence))  # each operation is quick while the store lives
    here = describe_this_process()
    store.set(f"beat/{rank.index}", f"0 0 {WORKS}")
    store.set(f"peer/{rank.index}", here.to_json())
    try:
        peers = _wait_for_peers(rank, store, connect_seconds)
    except KeyboardInterrupt as error:
        raise_recorded_failure(store, rank)  # torchrun stops this process because another one has ended
        number = signal_number(error)
        record_failure(store, Failure(rank.index, 128 + number, "Stopped.", label="", signal_number=number))
        if rank.index == 0:
            store.set(PRINTED_KEY, "0")
        raise
    except RuntimeError as error:  # the store
        raise LostStoreError(
            f"{str(rank).capitalize()} lost its connection to the first process or to torchrun, before all processes "
            f"were connected. {_LOST}"
        ) from error
    _check_machines(rank, peers)
    return Watch(rank, store, peers, limits)


def _wait_for_peers(rank: Rank, store: "Store", seconds: float) -> list[Peer]:
    """Return the descriptions of all processes when they are there."""
    deadline = time.monotonic() + seconds
    keys = [f"peer/{number}" for number in range(rank.size)]
    while not store.check(keys):
        raise_recorded_failure(store, rank)
        missing = [number + 1 for number in range(rank.size) if not store.check([f"peer/{number}"])]
        _check_parent()
        if time.monotonic() > deadline and missing:
            raise ConnectError(
                f"Processes {', '.join(map(str, missing))} of {rank.size} did not start within "
                f"{seconds:.0f} s. Fix: check their machines, and start all processes at the same time."
            )
        time.sleep(_POLL_SECONDS)
    return [Peer.from_json(text) for text in store.multi_get(keys)]


def raise_recorded_failure(store: "Store", rank: Rank) -> None:
    """Raise the failure of another process, which the launcher has recorded; the first process prints it."""
    if store.check([FAILURE_KEY]):
        if rank.index == 0:
            store.set(PRINTED_KEY, "0")
        raise OtherProcessError(Failure.from_json(store.get(FAILURE_KEY)))


def connect(rank: Rank, device: Literal["cuda", "cpu"], card: str, watch: Watch) -> TorchGroup:
    """Create torch.distributed's default group with NCCL for a card and gloo for the CPU, and return the group.

    `card` identifies this process's card, so that two processes on one card are refused.
    """
    import torch.distributed as dist

    group = TorchGroup(rank, clone_store(watch.store), watch)
    devices = group.gather_json([device, card])
    _check_devices(rank, devices, watch.machines)
    backend = "cuda:nccl,cpu:gloo" if device == "cuda" else "gloo"

    def create() -> None:
        dist.init_process_group(
            backend, store=clone_store(watch.store), rank=rank.index, world_size=rank.size, timeout=_COLLECTIVE_TIMEOUT
        )

    with watch.waiting():
        _run_in_thread(create, watch.check)
    remove_group_variables(os.environ)
    return group


def _open_store(rank: Rank, prefix: str, seconds: float) -> "Store":
    """Return the store of torchrun's agent, or of the first process if there is no agent."""
    from torch._C._distributed_c10d import PrefixStore
    from torch.distributed.rendezvous import rendezvous

    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        seconds = min(seconds, _AGENT_SECONDS)
    url = f"env://?rank={rank.index}&world_size={rank.size}"
    try:
        store, _, _ = _run_in_thread(lambda: next(rendezvous(url, timeout=timedelta(seconds=seconds))), _check_parent)
    except (RuntimeError, ValueError, OSError) as error:
        address = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
        raise ConnectError(
            f"{str(rank).capitalize()} cannot reach {address} ({first_line(error)[:300]}). "
            "Fix: check MASTER_ADDR and MASTER_PORT, and that no firewall or other program uses the port."
        ) from error
    return PrefixStore(prefix, store)


def _check_parent() -> None:
    """Raise ConnectError if torchrun or the launcher has ended, because it has the store of all processes."""
    launcher = os.environ.get(LAUNCHER_VARIABLE, "")
    if has_parent_ended() or (launcher.isdigit() and os.getppid() != int(launcher)):
        raise ConnectError(f"The program that started the processes has ended. {_LOST}")


def _run_in_thread(work: Callable[[], _Result], check: Callable[[], None]) -> _Result:
    """Return the result of a call that blocks in native code, and keep signals and failures working meanwhile."""
    results: list[_Result] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            results.append(work())
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run, name="connect", daemon=True)
    thread.start()
    while thread.is_alive():
        check()
        thread.join(_POLL_SECONDS)
    if errors:
        raise errors[0]
    return results[0]


def _check_machines(rank: Rank, peers: list[Peer]) -> None:
    """Raise UsageError if the local numbers do not agree with the machines of the processes.

    Several agents of torchrun on one machine count their own processes only. Cards are compared later.
    """
    if rank.is_from_agent:
        return
    machine = peers[rank.index].machine
    on_this_machine = [number for number, peer in enumerate(peers) if peer.machine == machine]
    if len(on_this_machine) > rank.local_size:
        raise UsageError(
            f"{len(on_this_machine)} processes run on {socket.gethostname()}, and LOCAL_WORLD_SIZE is "
            f"{rank.local_size}. Fix: start them with torchrun, or set LOCAL_RANK and LOCAL_WORLD_SIZE."
        )


def _check_devices(rank: Rank, devices: list[list[str]], machines: list[str]) -> None:
    """Raise an error if the kinds of devices differ, or if two processes would use the same card."""
    kinds = [kind for kind, _ in devices]
    if len(set(kinds)) > 1:
        numbers = ", ".join(str(number + 1) for number, kind in enumerate(kinds) if kind == "cpu")
        raise UnavailableError(
            f"Processes {numbers} of {rank.size} have no card, and the others have one. "
            "Fix: --set base.device=cpu, or run only on machines with cards."
        )
    cards = [(machine, card) for (_, card), machine in zip(devices, machines, strict=True) if card]
    if len(set(cards)) < len(cards):
        raise UsageError(
            f"{rank.size} processes have {len(set(cards))} cards, and each needs its own. "
            f"Fix: start {len(set(cards))} processes, or make more cards visible (CUDA_VISIBLE_DEVICES)."
        )
