"""Messages of errors end with the page of the docs that explains them, and every such page exists."""

import re
from pathlib import Path

import pytest

from lora_chat.cli import main
from lora_chat.commands import error_pages
from lora_chat.commands.error_pages import ERROR_PAGES
from lora_chat.commands.error_report import report_error
from lora_chat.commands.parser import COMMANDS
from lora_chat.errors import (
    ConsentError,
    DataError,
    DiskFullError,
    IntegrityError,
    LoraChatError,
    MissingPackageError,
    OutOfMemoryError,
    RecipeError,
    RefusedDataError,
    StoppedError,
    UsageError,
)

DOCS = Path(__file__).parents[2] / "docs"


def anchors(page):
    """Return the anchors of a page, as GitHub makes them from headings."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("entry", ERROR_PAGES, ids=lambda entry: f"{entry.error.__name__}-{entry.page}")
def test_every_page_anchor_and_command_exists(entry):
    for command in COMMANDS if "COMMAND" in entry.page else [""]:
        name, _, anchor = entry.page.replace("COMMAND", command).partition("#")
        assert not anchor or anchor in anchors(DOCS / name)
        assert (DOCS / name).is_file()
    assert set(entry.commands) <= set(COMMANDS)


def test_no_entry_hides_a_later_one():
    for number, entry in enumerate(ERROR_PAGES):
        for earlier in ERROR_PAGES[:number]:
            covers = not earlier.option and (not earlier.commands or set(entry.commands) <= set(earlier.commands))
            same_scope = not earlier.commands or entry.commands
            assert not (issubclass(entry.error, earlier.error) and covers and same_scope), (earlier, entry)


@pytest.mark.parametrize(
    ("error", "command", "page"),
    [
        (RecipeError("x"), "sft", "recipes.md"),
        (DataError("x"), "sft", "data.md"),
        (RefusedDataError("x"), "audit", "data.md#audit"),
        (IntegrityError("x"), "verify", "sharing.md#checks-of-the-receiver"),
        (OutOfMemoryError("x", "y"), "sft", "planning.md#what-sft-does-with-the-estimate"),
        (DiskFullError("x"), "sft", "runs.md#free-space"),
        (OSError(28, "No space left on device", "f"), "sft", "runs.md#free-space"),
        (UsageError("x"), "clean", "commands.md#clean"),
    ],
)
def test_the_last_line_names_the_page(error, command, page, monkeypatch):
    monkeypatch.chdir(DOCS.parent)
    text = report_error(error, command, [command]).text
    assert text.splitlines()[-1] == f"More: docs/{page}"
    assert text.count("More: ") == 1


@pytest.mark.parametrize(
    "error", [LoraChatError("x"), MissingPackageError("x"), StoppedError("Stopped.", 15), KeyboardInterrupt()]
)
def test_errors_without_a_page_and_stops_have_no_line(error):
    assert "More:" not in report_error(error, "sft", ["sft"]).text


def test_the_command_that_gives_consent_is_the_last_line(monkeypatch):
    monkeypatch.chdir(DOCS.parent)
    lines = report_error(ConsentError("Foreign.", "--adopt"), "chat", ["chat", "run"]).text.splitlines()
    assert lines[1:] == ["More: docs/sharing.md#runs-of-somebody-else", "If you trust it: lora-chat chat run --adopt"]


def test_without_installed_pages_there_is_no_line(monkeypatch, tmp_path):
    monkeypatch.setattr(error_pages, "find_package_folder", lambda name: tmp_path / name)
    assert report_error(RecipeError("Wrong."), "sft", ["sft"]).text == "Wrong."


def test_the_line_is_on_stderr_only(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["runs", "no/such", "--json"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.endswith(f"\nMore: {DOCS / 'commands.md'}#runs\n")
