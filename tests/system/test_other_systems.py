"""The package uses nothing that Windows or older versions of Python lack."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
POSIX = {"fcntl", "resource", "termios", "tty", "pty", "pwd", "grp", "readline", "syslog", "posix", "crypt", "spwd"}
NEWER = {
    "tomllib": set(),
    "typing": {
        "Self",
        "Never",
        "LiteralString",
        "assert_never",
        "assert_type",
        "reveal_type",
        "Required",
        "NotRequired",
    }
    | {"Unpack", "TypeVarTuple", "override", "dataclass_transform"},
    "enum": {"StrEnum", "verify", "EnumCheck", "ReprEnum"},
    "datetime": {"UTC"},
    "contextlib": {"chdir"},
    "hashlib": {"file_digest"},
    "itertools": {"batched"},
    "builtins": {"ExceptionGroup", "BaseExceptionGroup"},
    "asyncio": {"TaskGroup", "timeout", "Runner"},
    "logging": {"getLevelNamesMapping"},
    "math": {"cbrt", "exp2"},
    "operator": {"call"},
}
"""What Python 3.10 does not have yet, by module; a module without names is new as a whole."""
FILES = sorted((ROOT / "lora_chat").rglob("*.py"))


def imported_at_once(tree):
    """Yield the modules imported at the top of a file, outside of functions, `try` and `if`."""
    for node in tree.body:
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module.split(".")[0]


def newer_names(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module in NEWER:
            names = {alias.name for alias in node.names}
            yield from names & NEWER[node.module] if NEWER[node.module] else {node.module}
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if NEWER.get(alias.name) == set())
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            yield from {node.attr} & NEWER.get(node.value.id, set())
        elif isinstance(node, ast.Name):
            yield from {node.id} & NEWER["builtins"]


def test_no_module_imports_posix_modules_at_its_top():
    found = [(path.name, name) for path in FILES for name in imported_at_once(ast.parse(path.read_text("utf-8")))]
    assert [(path, name) for path, name in found if name in POSIX] == []
    assert len(found) > 500


def test_no_file_needs_more_than_python_3_10():
    for path in FILES:
        tree = ast.parse(path.read_text("utf-8"), feature_version=(3, 10))
        assert list(newer_names(tree)) == [], path


@pytest.mark.parametrize(
    "code", ["import tomllib", "from typing import Self", "import hashlib\nhashlib.file_digest", "ExceptionGroup"]
)
def test_check_finds_newer_names(code):
    assert list(newer_names(ast.parse(code)))


@pytest.mark.parametrize("words", [["--help"], ["sft", "--help"], ["recipe", "recipes/smoke.yaml"]])
def test_the_command_line_starts_without_modules_of_posix(words):
    code = (
        f"import sys; sys.modules.update(dict.fromkeys({sorted(POSIX - {'posix'})}))\n"
        f"from lora_chat.cli import main\nraise SystemExit(main({words}))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert "Traceback" not in done.stderr
    assert done.returncode == 0
