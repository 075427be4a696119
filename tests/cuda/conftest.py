"""The fixture `card`: processes with emulated CUDA cards, see card_process.py."""

import pytest

_SKIPPED = pytest.StashKey[str]()


@pytest.fixture(scope="session")
def card(cache_home, tmp_path_factory, request):
    """Return a source of processes with emulated cards; skip the tests if this machine cannot emulate them."""
    from build_card import NoFakeCardError
    from card_process import CardProcesses

    try:
        processes = CardProcesses(tmp_path_factory.mktemp("card"))
    except NoFakeCardError as error:
        request.config.stash[_SKIPPED] = str(error)
        pytest.skip(f"No emulated CUDA card: {error}")
    yield processes
    processes.close()


def pytest_terminal_summary(terminalreporter, config):
    """Say that the code for CUDA was not tested."""
    if _SKIPPED in config.stash:
        terminalreporter.write_line(f"CUDA paths were NOT tested, no emulated card: {config.stash[_SKIPPED]}", red=True)
