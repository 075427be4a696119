"""Threads in which requests are parsed, rendered and tokenized, so that running streams do not wait for them."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Result = TypeVar("Result")

_NUM_THREADS = 4
_THREADS = ThreadPoolExecutor(_NUM_THREADS, thread_name_prefix="prompt")


async def run_in_thread(function: Callable[[], Result]) -> Result:
    """Return the result of a function that takes time."""
    return await asyncio.get_running_loop().run_in_executor(_THREADS, function)
