"""Let several processes prepare at the same time and use the card in turns.

A process writes one line of JSON for each message and then waits for a line with the permission to go on.
"""

import json
import os
import sys
from typing import Any

_messages = os.fdopen(os.dup(1), "w", encoding="utf-8")


def reserve_stdout() -> None:
    """Send everything that libraries print to stderr, because stdout carries the messages."""
    sys.stdout.flush()
    os.dup2(2, 1)


def send(**message: Any) -> None:
    """Write one message."""
    _messages.write(json.dumps(message) + "\n")
    _messages.flush()


def wait_for_turn(**message: Any) -> bool:
    """Write a message and wait. Return whether the process may go on; False means that it should end."""
    send(**message)
    return sys.stdin.readline().strip() == "go"
