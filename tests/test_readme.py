"""The README's file tree is complete, and its commands exist."""

import re
from pathlib import Path

from lora_chat.arguments import make_parser
from lora_chat.cli import _COMMANDS

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


def test_file_tree_is_complete_and_true():
    shown = read_tree()
    modules = {
        str(path.relative_to(ROOT))
        for path in (ROOT / "lora_chat").rglob("*.py")
        if path.name not in ("__init__.py", "__main__.py")
    }
    assert {path for path in shown if path.endswith(".py")} == modules
    assert all((ROOT / path).exists() for path in shown)


def test_commands_of_the_readme_exist():
    verbs = set(re.findall(r"lora-chat (\w+)", README))
    known = next(a for a in make_parser(_COMMANDS)._actions if a.dest == "command" or a.choices).choices
    assert verbs == set(known)
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"\bmake ([a-z-]+)", README)) <= targets


def test_settings_of_the_readme_exist():
    from lora_chat.planning.recipe import Recipe

    for section, key in re.findall(r"--set (\w+)\.(\w+)=", README):
        if section != "section":
            assert key in Recipe.model_fields[section].annotation.model_fields, f"{section}.{key}"


def test_license_file_is_there():
    assert "Apache License" in (ROOT / "LICENSE").read_text()
