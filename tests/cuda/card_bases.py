"""Bases of two random layers for processes with an emulated card."""

from pathlib import Path


def find_base_folder(name, home):
    """Return the name of a built-in base, or the folder of a random model.

    The name of a random model is `random:ARCHITECTURE` or `random:ARCHITECTURE:HEAD_SIZE`.
    """
    if not name.startswith("random:"):
        return name
    folder = Path(home) / name.replace(":", "-")
    if not folder.exists():
        from tests import conftest

        _, architecture, *head_sizes = name.split(":")
        if head_sizes:
            conftest._SHAPE["head_dim"] = int(head_sizes[0])
        conftest.make_random_base(architecture, folder, sharpness=1.0)
    return str(folder)
