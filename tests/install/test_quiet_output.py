"""A run shows no progress bars and notices of libraries, neither on a terminal nor in a pipe."""

import io
import logging
import os
import sys
import warnings

import pytest

from lora_chat import cli
from lora_chat.system import console, hub_client
from lora_chat.system.download_view import open_download_view
from lora_chat.system.library_settings import CHATTY_LIBRARIES


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture(params=[Terminal, io.StringIO])
def stderr(request, monkeypatch):
    stream = request.param()
    monkeypatch.setattr(sys, "stderr", stream)
    return stream


def test_bars_of_libraries_are_hidden(stderr, monkeypatch):
    monkeypatch.delenv("HF_HUB_DISABLE_PROGRESS_BARS", raising=False)
    levels = {name: logging.getLogger(name).level for name in CHATTY_LIBRARIES}
    with warnings.catch_warnings():
        cli._silence_libraries()
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)
    # Transformers decides by this variable when it is imported: "Loading weights", "Converting and de-quantizing".
    assert os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] == "1"


def test_downloads_show_a_bar_on_the_terminal_of_a_command_only(stderr, monkeypatch):
    assert hub_client._find_bar_class() is None  # a user's program has not asked for bars
    monkeypatch.setattr(sys, "stderr", console._FilteredStream(stderr))
    assert (hub_client._find_bar_class() is not None) == stderr.isatty()
    view = open_download_view(1000)
    view.show(500)
    view.close()
    assert ("0.0 MB of 0.0 MB" in stderr.getvalue()) == stderr.isatty()
