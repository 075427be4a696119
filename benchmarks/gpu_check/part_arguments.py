"""Parse the arguments that every part has."""

import argparse
from pathlib import Path

from check_sizes import CheckSize, find_size


def read_part_arguments() -> tuple[CheckSize, Path]:
    """Return the size of the check and the work folder, which the parts share."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--size", required=True)
    parser.add_argument("--work", type=Path, required=True)
    options = parser.parse_args()
    return find_size(options.size), options.work
