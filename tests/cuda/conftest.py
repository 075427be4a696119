"""The fixture `card`: processes with emulated CUDA cards, see card_process.py."""

import pytest


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
