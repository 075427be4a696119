"""The README's file tree is complete, and its commands exist."""

import ast
import re
from pathlib import Path

from lora_chat.commands.parser import make_parser

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def read_tree():
    block = README[README.index("README.md                ") :].split("```")[0]
    folders, paths = {}, set()
    for line in block.splitlines():
        depth = (len(line) - len(line.lstrip())) // 2
        name = line.split()[0]
        folders[depth] = name
        path = "".join(folders[d] for d in range(depth)) + name
        paths.add(path)
        assert name.endswith("/") or len(line.split()) > 1, f"no description: {line}"
    return paths


def test_file_tree_names_every_package():
    shown = read_tree()
    packages = {f"lora_chat/{path.parent.name}/" for path in (ROOT / "lora_chat").glob("*/__init__.py")}
    assert {path for path in shown if path.startswith("lora_chat/") and path.endswith("/")} == packages | {"lora_chat/"}
    assert all((ROOT / path).exists() for path in shown)


def test_each_package_names_its_modules():
    for init in (ROOT / "lora_chat").rglob("*/__init__.py"):
        text = ast.get_docstring(ast.parse(init.read_text(encoding="utf-8"))) or ""
        named = set(re.findall(r"^- (\w+):", text, re.MULTILINE))
        assert named == {path.stem for path in init.parent.glob("*.py")} - {"__init__"}, init


def test_commands_of_the_readme_exist():
    verbs = set(re.findall(r"lora-chat (\w+)", README))
    known = next(a for a in make_parser()._actions if a.dest == "command" or a.choices).choices
    assert verbs == set(known)
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"\bmake ([a-z-]+)", README)) <= targets


def test_settings_of_the_readme_exist():
    from lora_chat.config.recipe import Recipe

    for section, key in re.findall(r"--set (\w+)\.(\w+)=", README):
        if section != "section":
            assert key in Recipe.model_fields[section].annotation.model_fields, f"{section}.{key}"


def test_license_file_is_there():
    assert "Apache License" in (ROOT / "LICENSE").read_text()
