"""A run that a signal stops ends with a readable message and its exit code, and leaves complete files."""

import json
import os
import signal
import time

import pytest

from lora_chat.cli import main
from lora_chat.errors import StoppedError
from lora_chat.models.bundled import find_bundled_base
from lora_chat.pipeline.run_status import RunProgress
from lora_chat.system.signals import SignalInterrupt, raise_on_signals
from lora_chat.training.stop_request import catch_stop_signals
from tests.fork_server import make_process
from tests.warm_worker import run_in_folder


class Run:
    """A run of the smoke recipe in its own process."""

    def __init__(self, folder, *settings):
        find_bundled_base("tiny-random")
        self._streams = folder / "streams"
        self._streams.mkdir()
        words = [word for setting in (f"output.directory={folder}", *settings) for word in ("--set", setting)]
        self._process = make_process(
            run_in_folder, self._streams, main, ["sft", "recipes/smoke.yaml", "--json", *words]
        )
        self._process.start()

    def send_signal_after(self, text, signal_number):
        """Send a signal as soon as a line of stderr begins with a text."""
        while not any(line.startswith(text) for line in self._read("stderr").splitlines()):
            assert self._process.is_alive(), f"{text!r} was not printed:\n{self._read('stderr')}"
            time.sleep(0.02)
        os.kill(self._process.pid, signal_number)

    def end(self, code):
        """Return stderr; assert the exit code, an empty stdout and no traceback."""
        self._process.join(120)
        err = self._read("stderr")
        assert self._process.exitcode == code, err
        assert self._read("stdout") == ""
        assert "Traceback" not in err
        return err

    def _read(self, name):
        path = self._streams / name
        return path.read_text() if path.exists() else ""


@pytest.mark.slow
@pytest.mark.parametrize(("signal_number", "code"), [(signal.SIGTERM, 143)])
def test_signal_in_training_saves_checkpoint_and_adapter(cache_home, tmp_path, signal_number, code):
    process = Run(tmp_path, "training.epochs=5000")
    process.send_signal_after("step 1/", signal_number)
    err = process.end(code)
    assert "Stopped after step" in err
    assert "lora-chat chat" in err
    run = tmp_path / "smoke-1"
    assert (run / "adapter" / "adapter_model.safetensors").stat().st_size > 1000
    steps = [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert steps == list(range(1, len(steps) + 1))
    assert f"Stopped after step {steps[-1]} of" in err


@pytest.fixture
def handlers():
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.getsignal(number) for number in numbers}
    raise_on_signals()
    yield
    raise_on_signals()  # clears the received signals
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("signal_number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_suppressed_signal_stops_the_next_stage(handlers, signal_number):
    progress = RunProgress()
    progress.enter_stage("reading")
    with pytest.raises(SignalInterrupt) as caught:
        signal.raise_signal(signal_number)
    assert caught.value.number == signal_number
    with pytest.raises(StoppedError) as stopped:
        progress.enter_stage("loading")
    assert stopped.value.exit_code == 128 + signal_number
    with catch_stop_signals() as request:
        assert request.signal_number == signal_number


@pytest.mark.slow
@pytest.mark.parametrize(("signal_number", "code"), [(signal.SIGHUP, 129)])
def test_signal_before_training_prints_the_resume_command(cache_home, tmp_path, signal_number, code):
    process = Run(tmp_path)
    process.send_signal_after("Base ", signal_number)
    err = process.end(code)
    assert "There is no checkpoint yet" in err
    assert f"--resume {tmp_path / 'smoke-1'}" in err
    assert not (tmp_path / "smoke-1" / "adapter").exists()
