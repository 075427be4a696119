"""Compiles the emulated card once for each version of PyTorch and of its source. Imports no PyTorch."""

import ctypes
import getpass
import hashlib
import importlib.metadata
import importlib.util
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

SOURCE = Path(__file__).with_name("fake_card.cpp")
TORCH_VERSION = "2.13.0"
"""Version of PyTorch whose internals the emulated card was written for; constraints.txt pins it."""


class NoFakeCardError(Exception):
    """The reason why there is no emulated card on this machine."""


def check_requirements() -> None:
    """Raise NoFakeCardError unless the emulated card works with this compiler and this PyTorch."""
    version = importlib.metadata.version("torch")
    if version.partition("+")[0] != TORCH_VERSION:
        raise NoFakeCardError(f"it is written for PyTorch {TORCH_VERSION}, and this is {version}")
    if not (_torch_folder() / "lib/libtorch_cpu.so").exists() or (_torch_folder() / "lib/libtorch_cuda.so").exists():
        raise NoFakeCardError("it needs a CPU build of PyTorch for Linux")
    if shutil.which("g++") is None:
        raise NoFakeCardError("g++ is not installed")


def build_library() -> Path:
    """Return the compiled library; two processes may build it at the same time."""
    check_requirements()
    digest = hashlib.sha256(SOURCE.read_bytes() + str(_torch_folder()).encode()).hexdigest()[:16]
    folder = Path(tempfile.gettempdir()) / f"lora-chat-tests-{getpass.getuser()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.stat().st_uid != os.getuid():
        raise NoFakeCardError(f"{folder} belongs to another user")
    library = folder / f"fake_card-{importlib.metadata.version('torch')}-{digest}.so"
    if not library.exists():
        unfinished = library.with_suffix(f".{os.getpid()}")
        try:
            _compile(unfinished)
            unfinished.replace(library)
        finally:
            unfinished.unlink(missing_ok=True)
    return library


def load_library() -> None:
    """Load the emulated card into this process, which must not have imported PyTorch."""
    ctypes.CDLL(str(build_library()), mode=ctypes.RTLD_GLOBAL)


def _compile(library: Path) -> None:
    torch = _torch_folder()
    command = ["g++", "-std=c++20", "-O1", "-fPIC", "-shared", str(SOURCE), "-o", str(library)]
    command += [f"-I{torch}/include", f"-I{torch}/include/torch/csrc/api/include", f"-L{torch}/lib"]
    command += [f"-Wl,-rpath,{torch}/lib", "-lc10", "-ltorch_cpu", "-ltorch"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise NoFakeCardError(f"g++ cannot compile it:\n{done.stderr[-2000:]}")


def _torch_folder() -> Path:
    return Path(importlib.util.find_spec("torch").submodule_search_locations[0])
