"""A call into a library that a stranger's file may keep busy for ever, given up after some seconds."""

import threading
from collections.abc import Callable
from typing import TypeVar

from lora_chat.errors import UnavailableError

Result = TypeVar("Result")


def call_with_timeout(function: Callable[[], Result], seconds: float, what: str) -> Result:
    """Call a function that lets go of the interpreter's lock, and return its result.

    It runs in a thread, because native code cannot be interrupted; a thread that is given up ends with the process.
    Raises UnavailableError after `seconds`, or if the library panics, and whatever the function raises.
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
        raise UnavailableError(f"{what} takes more than {seconds:.0f} seconds, and was given up.")
    if is_rust_panic(errors[0]):
        raise UnavailableError(f"{what} fails: {rust_panic_message(errors[0])}.") from errors[0]
    raise errors[0]


def is_rust_panic(error: BaseException) -> bool:
    """Whether an exception is a panic of a library in Rust, which is no subclass of Exception."""
    return type(error).__name__ == "PanicException"


def rust_panic_message(error: BaseException) -> str:
    """The first line of what a library in Rust said, cut short."""
    return (str(error).strip() or "it panicked").splitlines()[0][:200]
