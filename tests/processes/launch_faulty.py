"""Start `faulty.py` in several processes with the launcher of `lora-chat sft --processes`."""

import sys
from pathlib import Path

import lora_chat.processes.launch as launch

if __name__ == "__main__":
    from lora_chat import cli
    from lora_chat.system.console import filter_output, print_message
    from lora_chat.system.signals import signal_number

    filter_output()
    cli._prepare_environment(verbose=False)
    launch.interpreter_command = lambda: [sys.executable, str(Path(__file__).with_name("faulty.py"))]
    try:
        raise SystemExit(launch.launch_processes(int(sys.argv[1]), sys.argv[2:]))
    except KeyboardInterrupt as error:  # as the command line does it
        print_message("Stopped.")
        raise SystemExit(128 + signal_number(error)) from None
