"""Several processes for a test: forks of one server that has imported the libraries, joined by gloo."""

import multiprocessing
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lora_chat.processes.rank import Rank

_TIMEOUT_SECONDS = 300
PRELOAD = ["ranks", "lora_chat.training.sft", "lora_chat.training.trainer", "lora_chat.pipeline.fine_tune"]
"""Modules that the server imports once."""


class RankError(AssertionError):
    """An exception in one of the processes, with its traceback."""


def run_ranks(count: int, function: Callable[..., Any], *arguments: Any, timeout: float = _TIMEOUT_SECONDS) -> list:
    """Call a function of a test module in `count` processes that form a group, and return their results.

    Raise RankError with the traceback of the first process that failed.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOAD)
    with tempfile.TemporaryDirectory() as folder:
        receivers, processes = [], []
        for index in range(count):
            receiver, sender = context.Pipe(duplex=False)
            job = (sender, Rank(index, count, index, count), folder, function, arguments)
            process = context.Process(target=_run_rank, args=job, daemon=True)
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
    import torch
    import torch.distributed as dist

    from lora_chat.processes.group import use_group
    from lora_chat.processes.torch_group import TorchGroup

    torch.set_num_threads(1)
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
