"""README and docs link to files that exist and name commands, settings, tests and packages that exist."""

import re
from pathlib import Path

import pytest

from lora_chat.commands.parser import make_parser

ROOT = Path(__file__).parent.parent
PAGES = [
    *(ROOT / name for name in ("README.md", "SECURITY.md", "CONTRIBUTING.md", "CHANGELOG.md", "recipes/README.md")),
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted((ROOT / "benchmarks").glob("*.md")),
]


def broken_links(page, root):
    """Return the relative links of a page that lead nowhere."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    targets = [target.partition("#")[0] for target in re.findall(r"\]\(([^)\s]+)\)", text)]
    local = [target for target in targets if target and not re.match(r"[a-z]+:", target)]
    return [t for t in local if not (page.parent / t).exists() or not (page.parent / t).resolve().is_relative_to(root)]


def missing_paths(page):
    """Return the paths in backticks that look like files of the repository and do not exist."""
    named = re.findall(
        r"`((?:tests|lora_chat|benchmarks|recipes|tools|docs)/[\w./-]+)`", page.read_text(encoding="utf-8")
    )
    test_names = {path.name for path in (ROOT / "tests").rglob("*.py")}
    bare = re.findall(r"`(test_\w+\.py)`", page.read_text(encoding="utf-8"))
    return [name for name in named if not (ROOT / name).exists()] + [name for name in bare if name not in test_names]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_commands_targets_and_settings_of_a_page_exist(page):
    from lora_chat.config.recipe import Recipe

    text = page.read_text(encoding="utf-8")
    known = next(a for a in make_parser()._actions if a.dest == "command" or a.choices).choices
    assert set(re.findall(r"lora-chat ([a-z]+) (?=[A-Z]|--|runs/|recipes/)", text)) <= set(known)
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    assert set(re.findall(r"`make ([a-z-]+)|^make ([a-z-]+)", text, re.MULTILINE)) <= {
        pair for target in targets for pair in ((target, ""), ("", target))
    }
    for section, key in re.findall(r"--set ([a-z_]+)\.([a-z_]+)=", text):
        if section.lower() != "section":
            assert key in Recipe.model_fields[section].annotation.model_fields, f"{section}.{key}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_and_paths_of_a_page_exist(page):
    assert broken_links(page, ROOT) == []
    assert missing_paths(page) == []


def test_a_broken_link_is_found(tmp_path):
    (tmp_path / "there.md").touch()
    page = tmp_path / "page.md"
    page.write_text("[a](there.md) [b](there.md#part) [c](https://example.com) [d](gone.md)\n```\n[e](code.md)\n```\n")
    assert broken_links(page, tmp_path) == ["gone.md"]
