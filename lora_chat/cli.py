"""Entry point: environment, dispatch and exit codes."""

# This import comes first, so that no module is imported from the working directory.
import lora_chat.system.import_path  # noqa: F401

# isort: split
import argparse
import logging
import os
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress

from lora_chat.commands.error_report import report_error
from lora_chat.commands.parser import make_parser
from lora_chat.errors import ReportedError
from lora_chat.processes.rank import is_later_process, is_one_of_several, refuse_several_processes
from lora_chat.system.console import (
    filter_output,
    print_error,
    print_logged_messages,
    print_message,
    restore_output,
    silence_output,
)
from lora_chat.system.environment import check_path_variables, make_search_paths_absolute
from lora_chat.system.library_settings import CHATTY_LIBRARIES, ENVIRONMENT, SMALLER_CACHES, block_hub_code
from lora_chat.system.operating_system import let_segments_grow
from lora_chat.system.signals import ignore_signals, raise_on_signals, unblock_signals

_FIRST_PROCESS_SECONDS = 5.0
"""Time in which the first of several processes prints an error that all of them have, in seconds."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return the exit code."""
    filter_output()
    print_logged_messages()
    is_shared, is_later = is_one_of_several(os.environ), is_later_process(os.environ)
    if is_later:
        silence_output()  # the first process prints the messages about arguments
    options = _parse(arguments, is_later=is_later)
    _prepare_environment(verbose=options.verbose)
    execute: Callable[[argparse.Namespace], None] = options.execute
    options.arguments = list(sys.argv[1:] if arguments is None else arguments)
    command = getattr(options, "command", "")
    try:
        unblock_signals()
        check_path_variables(os.environ)
        if command != "sft":
            refuse_several_processes(os.environ, command)
        execute(options)
        return 0
    except ReportedError as error:
        return error.exit_code
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except BaseException as error:
        if is_shared and (not is_later or isinstance(error, KeyboardInterrupt)):
            ignore_signals()  # torchrun stops this process when another one ends, while it prints or ends
        report = report_error(error, command, options.arguments)
        if report is None:
            raise
        if is_later and not isinstance(error, KeyboardInterrupt):
            _let_first_process_print()
        print_error(report.text, label=report.label)
        return report.exit_code


def _parse(arguments: Sequence[str] | None, *, is_later: bool) -> argparse.Namespace:
    """Parse the arguments. A later process of several lets the first one print what is wrong with them."""
    try:
        return make_parser().parse_args(arguments)
    except SystemExit as error:
        if not is_later or not error.code:
            raise
        _let_first_process_print()
        return make_parser().parse_args(arguments)  # prints the message of the same error


def _let_first_process_print() -> None:
    """Wait before this process ends, because torchrun then stops the first one, which may not have printed yet.

    The first process usually has the same error, and torchrun stops this one when the first has ended. Otherwise this
    process prints its error itself.
    """
    with suppress(KeyboardInterrupt):
        time.sleep(_FIRST_PROCESS_SECONDS)
        restore_output()


def _prepare_environment(*, verbose: bool) -> None:
    """Set environment variables, signal handlers and log levels before any library is imported."""
    os.environ.update(ENVIRONMENT)
    block_hub_code()
    if "LD_LIBRARY_PATH" in make_search_paths_absolute(os.environ):  # the loader has read it already
        print_message(
            "LD_LIBRARY_PATH has an empty or relative element, so libraries of the working directory are loaded."
        )
    for name, value in SMALLER_CACHES.items():
        os.environ.setdefault(name, value)
    os.environ.setdefault("CUDA_DEVICE_ORDER", "PCI_BUS_ID")  # cards are counted as `nvidia-smi` counts them
    let_segments_grow(os.environ)
    raise_on_signals()
    if not verbose:
        _silence_libraries()


def _silence_libraries() -> None:
    """Hide the messages of the libraries, because lora_chat reports what matters to the user."""
    warnings.filterwarnings("ignore")
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "FATAL")  # connections that another process has closed
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    # Transformers hides most of its bars by the first variable; the bar of GGUF files is plain tqdm, which has its own.
    # `hub_client` shows the bars of downloads on a terminal itself.
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TQDM_DISABLE", "1")
    for name in CHATTY_LIBRARIES:
        logging.getLogger(name).setLevel(logging.ERROR)
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
