"""Calls of library functions with a time limit, because a stranger's file may keep them busy forever."""

import threading
from collections.abc import Callable
from typing import TypeVar

from lora_chat.errors import UnavailableError

Result = TypeVar("Result")


def call_with_timeout(function: Callable[[], Result], seconds: float, what: str) -> Result:
    """Call a function that releases the interpreter's lock, and return its result.

    It runs in a thread, because native code cannot be interrupted; an abandoned thread ends with the process.
    Raise UnavailableError after `seconds` or if the library panics, and any exception of the function.
    """
    results: list[Result] = []
    errors: list[BaseException] = []

    def work() -> None:
        try:
            results.append(function())
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(seconds)
    if results:
        return results[0]
    if not errors:
        raise UnavailableError(f"{what} takes more than {seconds:.0f} seconds and was abandoned.")
    if is_rust_panic(errors[0]):
        raise UnavailableError(f"{what} fails: {rust_panic_message(errors[0])}.") from errors[0]
    raise errors[0]


def is_rust_panic(error: BaseException) -> bool:
    """Return whether an exception is a panic of a Rust library, which is not a subclass of Exception."""
    return type(error).__name__ == "PanicException"


def rust_panic_message(error: BaseException) -> str:
    """Return the first line of the message of a Rust library, at most 200 characters."""
    return (str(error).strip() or "it panicked").splitlines()[0][:200]
