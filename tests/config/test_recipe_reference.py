import subprocess
import sys
from pathlib import Path

from lora_chat.config.audit import FINDING_KINDS, AuditSection, finding_title, is_redactable
from lora_chat.config.recipe import Recipe

ROOT = Path(__file__).parents[2]


def print_reference():
    command = [sys.executable, str(ROOT / "tools" / "recipe_reference.py")]
    return subprocess.run(command, capture_output=True, text=True, encoding="utf-8", check=True, cwd=ROOT).stdout


def test_the_committed_reference_is_up_to_date():
    assert (ROOT / "docs" / "recipes.md").read_text(encoding="utf-8") == print_reference()


def test_the_reference_has_a_row_for_every_setting():
    reference = (ROOT / "docs" / "recipes.md").read_text(encoding="utf-8")
    for name, field in Recipe.model_fields.items():
        section = reference.split(f"## `{name}`\n")[1].split("\n## ")[0]
        rows = [line.split("`")[1] for line in section.splitlines() if line.startswith("| `")]
        assert rows == list(field.annotation.model_fields)
    assert "| `rank` | integer ≥ 1 and ≤ 1,024 | `16` |" in reference
    assert "| `micro_batch_size` | `auto`, integer ≥ 1 | `auto` |" in reference
    assert "| `train` | string, source, list of strings or sources | required |" in reference


def test_every_kind_of_finding_is_a_setting_with_a_title():
    assert tuple(AuditSection.model_fields) == FINDING_KINDS
    titles = [finding_title(kind) for kind in FINDING_KINDS]
    assert len(set(titles)) == len(titles)
    assert not set(titles) & set(FINDING_KINDS)
    assert [kind for kind in FINDING_KINDS if is_redactable(kind)] == ["secret", "possible_secret", "personal_data"]
