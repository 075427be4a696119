"""Bases of two random layers for processes with an emulated card."""

from pathlib import Path


def find_base_folder(name, home):
    """Return the name of a built-in base, or the folder of a random model for a name like `random:llama`."""
    if not name.startswith("random:"):
        return name
    folder = Path(home) / name.partition(":")[2]
    if not folder.exists():
        from tests.conftest import make_random_base

        make_random_base(folder.name, folder, sharpness=1.0)
    return str(folder)
