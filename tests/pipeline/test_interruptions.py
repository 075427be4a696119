"""A run that a signal stops ends with a readable message and its exit code, and leaves complete files."""

import json
import os
import signal
import subprocess
import sys

import pytest

from lora_chat.errors import StoppedError
from lora_chat.models.bundled import find_bundled_base
from lora_chat.pipeline.run_status import RunProgress
from lora_chat.system.signals import SignalInterrupt, raise_on_signals
from lora_chat.training.stop_request import catch_stop_signals


def start(tmp_path, *settings):
    find_bundled_base("tiny-random")
    arguments = ["sft", "recipes/smoke.yaml", "--json", "--set", f"output.directory={tmp_path}"]
    for setting in settings:
        arguments += ["--set", setting]
    return subprocess.Popen(
        [sys.executable, "-m", "lora_chat", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"},
    )


def wait_for(process, text):
    output = ""
    for line in process.stderr:
        output += line
        if line.startswith(text):
            return
    raise AssertionError(f"{text!r} was not printed:\n{output}")


def readable_end(process, code):
    """Return stderr; assert the exit code, an empty stdout and no traceback."""
    out, err = process.communicate(timeout=120)
    assert process.returncode == code, err
    assert out == ""
    assert "Traceback" not in err
    return err


@pytest.mark.slow
@pytest.mark.parametrize(("signal_number", "code"), [(signal.SIGTERM, 143)])
def test_signal_in_training_saves_checkpoint_and_adapter(cache_home, tmp_path, signal_number, code):
    process = start(tmp_path, "training.epochs=5000")
    wait_for(process, "step 1/")
    process.send_signal(signal_number)
    err = readable_end(process, code)
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
    process = start(tmp_path)
    wait_for(process, "Base ")
    process.send_signal(signal_number)
    err = readable_end(process, code)
    assert "There is no checkpoint yet" in err
    assert f"--resume {tmp_path / 'smoke-1'}" in err
    assert not (tmp_path / "smoke-1" / "adapter").exists()
