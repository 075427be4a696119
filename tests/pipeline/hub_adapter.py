"""The stand-in of the hub for tests that use a repository through a command."""

import os
import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "system"))
from hub_stand_in import StandIn


def serve(files, folder, monkeypatch):
    """Serve files as a repository on loopback, with caches below a folder, until the generator is closed."""
    import huggingface_hub
    from huggingface_hub import constants

    for name in [name for name in os.environ if name.startswith("HF_") or "proxy" in name.lower()]:
        monkeypatch.delenv(name)
    stand_in = StandIn()
    stand_in.files = dict(files)
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "own"))
    monkeypatch.setattr(constants, "ENDPOINT", stand_in.endpoint)
    template = stand_in.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder / "cache" / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    huggingface_hub.close_session()
    yield stand_in
    huggingface_hub.close_session()
    stand_in.server.shutdown()
    stand_in.server.server_close()
