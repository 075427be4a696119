import importlib.util
import re
import shlex
from pathlib import Path

from lora_chat.commands.parser import COMMAND_GROUPS, COMMANDS, make_parser

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "commands.md").read_text(encoding="utf-8")


def test_the_committed_command_reference_is_up_to_date():
    spec = importlib.util.spec_from_file_location("command_reference", ROOT / "tools" / "command_reference.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.format_reference() == PAGE


def test_every_command_has_a_section():
    assert re.findall(r"^### ([\w-]+)$", PAGE, re.MULTILINE) == list(COMMANDS)


def test_every_example_is_a_valid_command_line():
    for group in COMMAND_GROUPS:
        for name, entry in group.entries.items():
            assert make_parser().parse_args(shlex.split(entry.example)).command == name


def test_the_modules_are_those_of_the_package():
    shared = {"__init__", "options", "parser", "memory_advice", "error_report", "error_pages"}
    shared |= {"serve_admin", "completion_functions", "argument_parser", "setting_names"}
    modules = {path.stem for path in (ROOT / "lora_chat" / "commands").glob("*.py")} - shared
    assert {entry.module.__name__.rpartition(".")[2] for g in COMMAND_GROUPS for entry in g.entries.values()} == modules
