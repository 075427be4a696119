"""The pages of the docs that explain errors, and the line that names one after a message."""

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from lora_chat.errors import (
    ConsentError,
    DataError,
    DiskError,
    DiskFullError,
    IntegrityError,
    InUseError,
    LoraChatError,
    NonFiniteError,
    OutOfMemoryError,
    RecipeError,
    RefusedDataError,
    TemplateError,
    UnavailableError,
    UsageError,
)
from lora_chat.processes.connect import ConnectError
from lora_chat.processes.failure import LostProcessError
from lora_chat.system.console import display_path
from lora_chat.system.package_folders import find_package_folder

_OPENING = ("chat", "generate", "serve", "eval", "judge", "verify", "pull", "push", "pack")
"""Commands that open adapters of anybody."""


@dataclass(frozen=True)
class ErrorPage:
    """The section of a page that explains a kind of error."""

    error: type[LoraChatError]
    page: str
    """Name of the page in docs/, with the anchor of its section; `COMMAND` stands for the name of the command."""
    commands: Collection[str] = ()
    """Commands whose errors it explains; all if there are none."""
    option: str = ""
    """Option without which it explains nothing."""


ERROR_PAGES = (
    ErrorPage(RecipeError, "recipes.md"),
    ErrorPage(RefusedDataError, "data.md#audit"),
    ErrorPage(DataError, "evaluation.md", ("eval", "judge")),
    ErrorPage(DataError, "data.md"),
    ErrorPage(TemplateError, "data.md#chat-templates"),
    ErrorPage(ConsentError, "guarantees.md#resuming", ("sft",), "--resume"),
    ErrorPage(ConsentError, "adapters.md", ("sft",)),
    ErrorPage(ConsentError, "sharing.md#runs-of-somebody-else"),
    ErrorPage(IntegrityError, "guarantees.md#resuming", ("sft",), "--resume"),
    ErrorPage(IntegrityError, "bases.md#what-is-checked-and-when", ("sft", "plan", "data", "audit", "fetch-base")),
    ErrorPage(IntegrityError, "export.md#parity-check", ("merge", "export")),
    ErrorPage(IntegrityError, "sharing.md#checks-of-the-receiver", _OPENING),
    ErrorPage(IntegrityError, "runs.md", ("runs", "diff", "report", "clean")),
    ErrorPage(OutOfMemoryError, "planning.md#what-sft-does-with-the-estimate", ("sft", "plan")),
    ErrorPage(OutOfMemoryError, "serving.md#limits", ("serve",)),
    ErrorPage(NonFiniteError, "guarantees.md#training", ("sft",)),
    ErrorPage(UnavailableError, "hardware.md", ("doctor",)),
    ErrorPage(UnavailableError, "bases.md#the-embedded-base", ("fetch-base",)),
    ErrorPage(DiskFullError, "runs.md#free-space"),
    ErrorPage(DiskError, "runs.md#free-space", ("clean",)),
    ErrorPage(InUseError, "runs.md#list-runs"),
    ErrorPage(LostProcessError, "several-gpus.md#what-ends-a-run"),
    ErrorPage(ConnectError, "several-gpus.md#on-several-machines"),
    ErrorPage(UsageError, "commands.md#COMMAND"),
)
"""The first entry that fits an error is used. A test compares the anchors with the headings of the pages."""


def find_page(error: BaseException, command: str, arguments: Collection[str]) -> str | None:
    """Return the page and anchor that explain an error, or None without one."""
    for entry in ERROR_PAGES:
        fits = not entry.commands or command in entry.commands
        if fits and isinstance(error, entry.error) and (not entry.option or entry.option in arguments):
            return entry.page.replace("COMMAND", command)
    return None


def format_page(page: str) -> str:
    """Return the line that names a page of this installation; empty if the page is not installed."""
    name, hash_sign, anchor = page.partition("#")
    path = find_package_folder("docs") / name
    return f"More: {display_path(Path(path))}{hash_sign}{anchor}" if path.is_file() else ""
