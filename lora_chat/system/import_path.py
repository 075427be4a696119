"""Removal of the working directory from the search paths of this process and its children, on import.

An empty or relative element of PYTHONPATH (`PYTHONPATH=.`, or `PYTHONPATH=$PYTHONPATH:/x` if it was unset) is the
working directory, which may contain a stranger's `yaml.py`. Absolute elements are the user's choice and remain. The
command line imports this module before any other, so it uses only modules that Python has already loaded.
"""

import os
import sys


def remove_working_directory() -> None:
    """Remove the elements of `sys.path` that are relative, or that come from a relative element of PYTHONPATH."""
    elements = [] if sys.flags.ignore_environment else os.environ.get("PYTHONPATH", "").split(os.pathsep)
    chosen = {os.path.abspath(element) for element in elements if os.path.isabs(element)}  # noqa: PTH100, PTH117
    traps = {os.path.abspath(element) for element in elements if not os.path.isabs(element)}  # noqa: PTH100, PTH117
    if elements == [""]:  # an empty variable has no elements
        traps = set()
    sys.path[:] = [
        element
        for element in sys.path
        if os.path.isabs(element) and (element in chosen or element not in traps)  # noqa: PTH117
    ]


def ignore_relative_pycache_prefix() -> None:
    """Ignore PYTHONPYCACHEPREFIX, the folder of compiled modules, if it depends on the working directory."""
    if sys.pycache_prefix is not None and not os.path.isabs(sys.pycache_prefix):  # noqa: PTH117
        sys.pycache_prefix = None


remove_working_directory()
ignore_relative_pycache_prefix()
os.environ["PYTHONSAFEPATH"] = "1"  # for interpreters that libraries start with `python -c` or `python -m`
