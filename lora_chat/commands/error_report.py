"""The message and the exit code of an error, for the process that prints it."""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass

from lora_chat.commands.error_pages import find_page, format_page
from lora_chat.commands.memory_advice import explain_out_of_memory
from lora_chat.errors import ConsentError, IntegrityError, LoraChatError, StoppedError, explain_disk_error
from lora_chat.system.bounded_call import is_rust_panic, rust_panic_message
from lora_chat.system.signals import signal_number


@dataclass(frozen=True)
class ErrorReport:
    """An error as it is printed."""

    exit_code: int
    text: str
    label: str = "Error: "


def report_error(error: BaseException, command: str, arguments: Sequence[str]) -> ErrorReport | None:
    """Return the report of an error that the user can fix, or None for a bug, which is printed with its traceback.

    It ends with the page of the docs that explains the error, or with the command that gives consent.
    """

    def report(known: LoraChatError, last_line: str = "") -> ErrorReport:
        page = find_page(known, command, arguments)
        text = known.message if isinstance(known, ConsentError) else str(known)
        lines = [text, format_page(page) if page else "", last_line]
        return ErrorReport(known.exit_code, "\n".join(filter(None, lines)))

    if isinstance(error, ConsentError):
        return report(error, f"If you trust it: {shlex.join(['lora-chat', *arguments, error.flag])}")
    if isinstance(error, StoppedError):
        return ErrorReport(error.exit_code, str(error), "")
    if isinstance(error, KeyboardInterrupt):
        return ErrorReport(128 + signal_number(error), "Stopped.", "")
    explained = explain_error(error, command)
    return report(explained) if explained else None


def explain_error(error: BaseException, command: str) -> LoraChatError | None:
    """Return an error as one that the user can fix, or None for a bug and for Ctrl-C."""
    if isinstance(error, LoraChatError):
        return explain_out_of_memory(error, command) or error
    if isinstance(error, OSError):
        return explain_disk_error(error)
    if isinstance(error, KeyboardInterrupt):
        return None
    if out_of_memory := explain_out_of_memory(error, command):
        return out_of_memory
    if is_rust_panic(error):
        return IntegrityError(
            f"A library failed on a file that is damaged or made to break it: {rust_panic_message(error)}"
        )
    return None
