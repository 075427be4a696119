"""The fixture `card`: processes with emulated CUDA cards, see card_process.py. Slow tests run with `make cuda-test`."""

import os
from pathlib import Path

import pytest


def pytest_collection_modifyitems(items):
    """Skip the slow tests of this folder, unless all tests on emulated cards are wanted."""
    if "LORA_CHAT_ALL_CUDA" in os.environ:
        return
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent) and item.get_closest_marker("slow"):
            item.add_marker(pytest.mark.skip(reason="on demand: make cuda-test"))


@pytest.fixture(scope="session")
def card(cache_home, tmp_path_factory):
    """Return a source of processes with emulated cards; skip the tests if this machine cannot emulate them."""
    from build_card import NoFakeCardError
    from card_process import CardProcesses

    try:
        processes = CardProcesses(tmp_path_factory.mktemp("card"))
    except NoFakeCardError as error:
        pytest.skip(f"No emulated CUDA card: {error}")
    yield processes
    processes.close()
