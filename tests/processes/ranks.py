"""Several processes for a test: forks of one server that has imported the libraries, joined by gloo."""

import tempfile
import traceback
from collections.abc import Callable
from multiprocessing import Pipe
from pathlib import Path
from typing import Any

from lora_chat.processes.rank import Rank
from tests.fork_server import make_process

_TIMEOUT_SECONDS = 300


class RankError(AssertionError):
    """An exception in one of the processes, with its traceback."""


def run_ranks(count: int, function: Callable[..., Any], *arguments: Any, timeout: float = _TIMEOUT_SECONDS) -> list:
    """Call a function of a test module in `count` processes that form a group, and return their results.

    Raise RankError with the traceback of the first process that failed.
    """
    with tempfile.TemporaryDirectory() as folder:
        receivers, processes = [], []
        for index in range(count):
            receiver, sender = Pipe(duplex=False)
            process = make_process(_run_rank, sender, Rank(index, count, index, count), folder, function, arguments)
            process.start()
            sender.close()
            receivers.append(receiver)
            processes.append(process)
        try:
            return [_receive(index, receiver, timeout) for index, receiver in enumerate(receivers)]
        finally:
            for process in processes:
                process.join(10)
                if process.is_alive():
                    process.kill()
                    process.join()


def _receive(index: int, receiver: Any, timeout: float) -> Any:
    """Return the result of a process."""
    if not receiver.poll(timeout):
        raise RankError(f"process {index} did not end within {timeout} s")
    try:
        error, result = receiver.recv()
    except EOFError:
        raise RankError(f"process {index} died") from None
    if error is not None:
        raise RankError(f"process {index}: {error}")
    return result


def _run_rank(sender: Any, rank: Rank, folder: str, function: Callable[..., Any], arguments: tuple) -> None:
    """Join the group, call the function and send its result."""
    import torch.distributed as dist

    from lora_chat.processes.group import use_group
    from lora_chat.processes.torch_group import TorchGroup

    try:
        store = dist.FileStore(str(Path(folder) / "store"), rank.size)
        dist.init_process_group("gloo", store=store, rank=rank.index, world_size=rank.size)
        with use_group(TorchGroup(rank, dist.PrefixStore("lora_chat", store))) as group:
            result = function(*arguments)
            group.wait()
            group.close()
        sender.send((None, result))
    except BaseException:
        sender.send((traceback.format_exc(), None))
