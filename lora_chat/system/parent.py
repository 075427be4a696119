"""The process that started this one, noted on import, which is before any library is imported."""

import os

_parent = os.getppid()


def has_parent_ended() -> bool:
    """Return whether the process that started this one has ended."""
    return os.getppid() != _parent


def _note_parent() -> None:
    global _parent
    _parent = os.getppid()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_note_parent)
