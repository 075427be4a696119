"""Importing this module keeps the working directory off the search paths of this process and of its children.

An empty or relative element of PYTHONPATH (`PYTHONPATH=.`, or `PYTHONPATH=$PYTHONPATH:/x` where it was unset) names the
working directory, which may hold a stranger's `yaml.py`. Absolute elements are the user's choice and stay. The command
line imports this module before any other, so it needs nothing that Python has not already loaded.
"""

import os
import sys


def remove_working_directory() -> None:
    """Remove the elements of `sys.path` that are relative, or that come from a relative element of PYTHONPATH."""
    given = [] if sys.flags.ignore_environment else os.environ.get("PYTHONPATH", "").split(os.pathsep)
    chosen = {os.path.abspath(element) for element in given if os.path.isabs(element)}  # noqa: PTH100, PTH117
    traps = {os.path.abspath(element) for element in given if not os.path.isabs(element)}  # noqa: PTH100, PTH117
    if given == [""]:  # an empty variable is no element
        traps = set()
    sys.path[:] = [
        element
        for element in sys.path
        if os.path.isabs(element) and (element in chosen or element not in traps)  # noqa: PTH117
    ]


def ignore_relative_pycache_prefix() -> None:
    """Take no compiled modules from a folder that depends on the working directory (PYTHONPYCACHEPREFIX)."""
    if sys.pycache_prefix is not None and not os.path.isabs(sys.pycache_prefix):  # noqa: PTH117
        sys.pycache_prefix = None


remove_working_directory()
ignore_relative_pycache_prefix()
os.environ["PYTHONSAFEPATH"] = "1"  # for interpreters that libraries start with `python -c` or `python -m`
