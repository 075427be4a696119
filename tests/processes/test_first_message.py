"""An error that all processes have at the start is printed once, also if a later process meets it first."""

import os
import signal
import threading

import pytest

from lora_chat import cli
from lora_chat.system.console import restore_output
from lora_chat.system.signals import STOP_SIGNALS

SECOND = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}
BAD_OPTION, BAD_START = ["sft", "recipes/smoke.yaml", "--proceses", "2"], ["sft", "recipes/smoke.yaml"]


@pytest.fixture(autouse=True)
def second_process(monkeypatch):
    handlers = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    for name, value in {**SECOND, "ACCELERATE_USE_FSDP": "true"}.items():
        monkeypatch.setenv(name, value)
    yield
    restore_output()
    for number, handler in handlers.items():
        signal.signal(number, handler)


def run(arguments):
    try:
        return cli.main(arguments)
    except SystemExit as end:
        return end.code


@pytest.mark.parametrize(("arguments", "text"), [(BAD_OPTION, "--proceses"), (BAD_START, "--use_fsdp")])
def test_a_later_process_prints_its_error_if_the_first_does_not_end(monkeypatch, capsys, arguments, text):
    monkeypatch.setattr(cli, "_FIRST_PROCESS_SECONDS", 0.01)
    assert run(arguments) == 2
    assert capsys.readouterr().err.count(text) >= 1


def test_a_later_process_is_silent_if_it_is_stopped_after_the_first_one(monkeypatch, capsys):
    monkeypatch.setattr(cli, "_FIRST_PROCESS_SECONDS", 20)
    timer = threading.Timer(0.3, os.kill, [os.getpid(), signal.SIGTERM])
    timer.start()
    assert run(BAD_START) == 2
    timer.join()
    assert capsys.readouterr().err == ""


def test_the_first_process_prints_at_once(monkeypatch, capsys):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("LOCAL_RANK", "0")
    monkeypatch.setattr(cli, "_FIRST_PROCESS_SECONDS", 200)
    assert run(BAD_START) == 2
    assert "--use_fsdp" in capsys.readouterr().err
