"""`lora-chat doctor`: report what this machine can do."""

import argparse

from lora_chat.system.console import print_json, print_result


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add no arguments, because the report is about the machine."""


def run(options: argparse.Namespace) -> None:
    """Report driver, PyTorch, cards and libraries, and what `sft` will use on this machine and why."""
    from lora_chat.pipeline.doctor import diagnose

    diagnosis = diagnose()
    print_json(diagnosis.as_dict()) if options.json else print_result(diagnosis.as_text())
    if diagnosis.error is not None:
        raise diagnosis.error
