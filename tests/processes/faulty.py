"""A process of a group that fails at a stage: `python faulty.py KIND RANK STAGE`. It works as `lora-chat sft` does."""

import ctypes
import errno
import os
import signal
import sys
import time
from pathlib import Path

STEPS = 40
STAGES = ("start", "joined", "connected", "step", "writing", "end")


def fail(kind: str) -> None:
    """Fail in one of the ways in which a process can fail."""
    from lora_chat.errors import DataError

    if kind in ("SIGKILL", "SIGSEGV", "SIGSTOP", "SIGTERM", "SIGINT", "SIGABRT"):
        os.kill(os.getpid(), getattr(signal, kind))
    elif kind == "loop":
        while True:
            pass
    elif kind == "native hang":
        mask = signal.SIGUSR1
        signal.pthread_sigmask(signal.SIG_BLOCK, [mask])
        ctypes.CDLL(None).sleep(10_000)
    elif kind == "native hang with the lock of the interpreter":
        ctypes.PyDLL(None).sleep(10_000)
    elif kind == "exit":
        os._exit(7)
    elif kind == "error":
        raise DataError("Line 3 is not JSON. Fix: correct it.")
    elif kind == "bug":
        raise ZeroDivisionError("division by zero")
    elif kind == "memory":
        raise MemoryError
    elif kind == "disk":
        raise OSError(errno.ENOSPC, "No space left on device", "/data/checkpoint")


def main(kind: str, failing: int, stage: str, silence: float) -> int:
    """Work in the group and fail at the stage if this is the failing process."""
    import torch

    from lora_chat import cli
    from lora_chat.commands.error_report import report_error
    from lora_chat.errors import LoraChatError, ReportedError
    from lora_chat.processes.beats import WatchLimits
    from lora_chat.processes.connect import connect
    from lora_chat.processes.failure import Failure
    from lora_chat.processes.rank import read_rank
    from lora_chat.processes.session import SessionTexts, end_process, joined_processes
    from lora_chat.system.console import filter_output, print_error, print_json, print_message, silence_output
    from lora_chat.system.signals import ignore_signals, signal_number, unblock_signals
    from lora_chat.training.stop_request import catch_stop_signals

    filter_output()
    cli._prepare_environment(verbose=False)
    rank = read_rank(os.environ)
    if rank.index > 0:
        silence_output()
    is_failing = rank.index == failing

    def reach(name: str) -> None:
        if is_failing and name == stage:
            fail(kind)

    def describe(error: BaseException) -> Failure | None:
        report = report_error(error, "sft", [])
        if report is None:
            return None
        number = report.exit_code - 128 if report.exit_code > 128 else 0
        return Failure(rank.index, report.exit_code, report.text, report.label, number)

    limits = WatchLimits(silence=silence, stall=silence, interrupt=1, grace=5, root_cause=5)
    try:
        unblock_signals()
        reach("start")
        with joined_processes(rank, limits, SessionTexts(describe, lambda: "")) as watch:
            reach("joined")
            group = connect(rank, "cpu", "", watch)
            reach("connected")
            with catch_stop_signals() as request:
                for step in range(STEPS):
                    time.sleep(0.05)
                    if step == 10:
                        reach("step")
                    group.sum_(torch.ones(1000))
                    numbers = [values[0] for values in group.exchange([request.signal_number])]
                    if step == 20 and rank.index == 0:
                        Path(os.environ["TMPDIR"], "run.part").write_text("a")
                        reach("writing")
                        Path(os.environ["TMPDIR"], "run.part").replace(Path(os.environ["OUT"], "run"))
                    if any(numbers):
                        from lora_chat.errors import StoppedError

                        raise StoppedError(f"Stopped after step {step}.", int(max(numbers)))
            reach("end")
            group.wait()
            group.close()
            if rank.index == 0:
                print_json({"steps": STEPS})
    except ReportedError as error:
        end_process(error.exit_code)
    except LoraChatError as error:  # as the command line does it
        print_error(str(error))
        return error.exit_code
    except KeyboardInterrupt as error:
        ignore_signals()
        print_message("Stopped.")
        return 128 + signal_number(error)
    if rank.index > 0:
        end_process(0)
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1], int(sys.argv[2]), sys.argv[3], float(sys.argv[4])))
