"""The README names every command, each package names its modules, and docs list every package."""

import ast
import re
from pathlib import Path

from lora_chat.commands.parser import make_parser

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def package_names():
    return {path.parent.name for path in (ROOT / "lora_chat").glob("*/__init__.py")}


def test_readme_is_short():
    assert len(README.encode()) < 10_000


def test_architecture_lists_every_package():
    tree = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8").split("lora_chat/\n")[1].split("```")[0]
    listed, parent = set(), ""
    for indent, name in re.findall(r"^( +)(\w+)/ ", tree, re.MULTILINE):
        parent = name if len(indent) == 2 else parent
        listed.add(name if len(indent) == 2 else f"{parent}/{name}")
    packages = {init.parent.relative_to(ROOT / "lora_chat") for init in (ROOT / "lora_chat").glob("*/**/__init__.py")}
    assert package_names() <= listed
    assert {path.as_posix() for path in packages if len(path.parts) <= 2} == listed


def test_each_package_names_its_modules():
    for init in (ROOT / "lora_chat").rglob("*/__init__.py"):
        text = ast.get_docstring(ast.parse(init.read_text(encoding="utf-8"))) or ""
        named = set(re.findall(r"^- (\w+):", text, re.MULTILINE))
        assert named == {path.stem for path in init.parent.glob("*.py")} - {"__init__"}, init


def test_readme_names_exactly_the_commands_that_exist():
    verbs = set(re.findall(r"lora-chat ([\w-]+)", README))
    known = next(a for a in make_parser()._actions if a.dest == "command" or a.choices).choices
    assert verbs == set(known)


def test_license_file_exists():
    assert "Apache License" in (ROOT / "LICENSE").read_text(encoding="utf-8")
