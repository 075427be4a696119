"""A run shows no progress bars and notices of libraries, neither on a terminal nor in a pipe."""

import io
import logging
import os
import subprocess
import sys
import warnings

import pytest

from lora_chat import cli
from lora_chat.system import console, hub_client
from lora_chat.system.download_view import open_download_view
from lora_chat.system.library_settings import CHATTY_LIBRARIES

BAR_VARIABLES = ("HF_HUB_DISABLE_PROGRESS_BARS", "TQDM_DISABLE")


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture(params=[Terminal, io.StringIO])
def stderr(request, monkeypatch):
    stream = request.param()
    monkeypatch.setattr(sys, "stderr", stream)
    return stream


def test_bars_of_libraries_are_hidden(stderr, monkeypatch):
    for name in BAR_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    levels = {name: logging.getLogger(name).level for name in CHATTY_LIBRARIES}
    with warnings.catch_warnings():
        cli._silence_libraries()
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)
    assert [os.environ[name] for name in BAR_VARIABLES] == ["1", "1"]


def test_bars_of_the_libraries_obey_these_variables():
    code = """
import tqdm.auto
from huggingface_hub.utils import are_progress_bars_disabled
assert are_progress_bars_disabled()  # Transformers asks this when it is imported: "Loading weights"
assert tqdm.auto.tqdm([1]).disable  # "Converting and de-quantizing GGUF tensors"
assert not tqdm.auto.tqdm([], disable=False).disable  # a bar of `hub_client`
"""
    environment = {**os.environ, **dict.fromkeys(BAR_VARIABLES, "1")}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_downloads_show_a_bar_on_the_terminal_of_a_command_only(stderr, monkeypatch):
    assert hub_client._find_bar_class() is None  # a user's program has not asked for bars
    monkeypatch.setattr(sys, "stderr", console._FilteredStream(stderr))
    assert (hub_client._find_bar_class() is not None) == stderr.isatty()
    view = open_download_view(1000)
    view.show(500)
    view.close()
    assert ("0.0 MB of 0.0 MB" in stderr.getvalue()) == stderr.isatty()
