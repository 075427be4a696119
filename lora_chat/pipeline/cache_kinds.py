"""The kinds of caches: where they are, what they contain, and how they come back after they are deleted."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from lora_chat.export.llama_cpp_converters import converters_folder
from lora_chat.system.cache_dir import cache_dir


@dataclass(frozen=True)
class CacheKind:
    """A kind of files that can be made or fetched again."""

    name: str
    """Name for `--only`."""
    folder: Callable[[], Path]
    """Function that returns its folder, or its file. Nothing is created."""
    content: str
    comes_back: str
    """How it comes back, and at which cost."""
    kept_because: str = ""
    """Reason why `clean` only shows it; empty if it can be deleted."""
    has_write_lock: bool = False
    """Whether writers lock the file `.lock` in the folder."""


CACHE_KINDS = (
    CacheKind(
        "bases",
        lambda: cache_dir() / "bases",
        "embedded bases",
        "at the next use; the chat model may be fetched again, 93 MB",
        has_write_lock=True,
    ),
    CacheKind(
        "downloads",
        lambda: cache_dir() / "downloads",
        "unfinished downloads",
        "at the next use, from the beginning",
        has_write_lock=True,
    ),
    CacheKind(
        "dialogues",
        lambda: cache_dir() / "dialogues",
        "encoded dialogues",
        "at the next run on the data; streamed data needs the network",
    ),
    CacheKind("audits", lambda: cache_dir() / "audits", "audit reports", "at the next run on the data"),
    CacheKind(
        "benchmarks",
        lambda: cache_dir() / "probes",
        "times of this machine",
        "at the next plan or run, in half a minute",
    ),
    CacheKind(
        "hub-notes",
        lambda: cache_dir() / "hub",
        "commits of data sets of the hub",
        "at the next run on the data, with the network",
    ),
    CacheKind(
        "digests",
        lambda: cache_dir() / "digests.json",
        "digests of files of bases",
        "at the next use of a base, in seconds per GB",
    ),
    CacheKind(
        "converters",
        converters_folder,
        "llama.cpp's converters",
        "at the next export to GGUF, 36 MB",
        kept_because="a part of this Python environment",
    ),
    CacheKind(
        "hub-pending",
        lambda: cache_dir() / "hub-pending",
        "marks of unverified downloads",
        "never",
        kept_because="without the marks an incomplete download would be trusted",
    ),
)
"""All kinds, in the order of the table. A test compares them with the folders that the code uses."""
