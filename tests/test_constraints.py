"""`make update` keeps the layout of constraints.txt and reports every change."""

import importlib.util
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SPEC = importlib.util.spec_from_file_location("update_constraints", ROOT / "tools" / "update_constraints.py")
update_constraints = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(update_constraints)
TEXT = """\
# The exact versions.
Jinja2==3.1.6
numpy==2.2.6 ; python_version < "3.11"
numpy==2.4.6 ; python_version >= "3.11"
six==1.17.0 ; python_version < "3.11"
torch==2.13.0
# Only for other extras.
lm_eval==0.4.13
"""


def test_constraints_have_the_layout_that_make_update_writes():
    text = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    assert update_constraints.format_pins(update_constraints.parse_pins(text)) == text


def test_every_direct_requirement_is_pinned_for_every_python():
    pins = update_constraints.parse_pins((ROOT / "constraints.txt").read_text(encoding="utf-8")).merged()
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    names = re.findall(r'"([A-Za-z][\w-]*)(?:>=|")', text.split("dependencies = [")[1].split("[project.scripts]")[0])
    assert len(names) > 30
    for name in names:
        if name != "setuptools":
            assert len(pins[update_constraints.normalize(name)]) == 2, name


@pytest.mark.parametrize(
    "broken", [TEXT.replace("# Only", "# Not"), TEXT + "six>=1\n", TEXT + 'a==1 ; sys_platform == "win32"\n']
)
def test_unknown_lines_are_refused(broken):
    with pytest.raises(SystemExit):
        update_constraints.parse_pins(broken)


def test_reading_and_writing_changes_nothing():
    pins = update_constraints.parse_pins(TEXT)
    assert pins.tested["six"] == {"3.10": "1.17.0"}
    assert pins.others == {"lm-eval": {"3.10": "0.4.13", "3.11": "0.4.13"}}
    assert update_constraints.format_pins(pins) == TEXT


def test_changes_name_the_old_and_new_version_and_the_python():
    old = update_constraints.parse_pins(TEXT).merged()
    new = {**old, "numpy": {"3.10": "2.2.6", "3.11": "2.5.0"}, "torch": {"3.10": "2.14.0", "3.11": "2.14.0"}}
    new["tomli"] = {"3.10": "2.5.0"}
    del new["jinja2"]
    assert update_constraints.describe_changes(old, new) == [
        "jinja2 3.1.6 -> absent",
        'numpy 2.4.6 -> 2.5.0  (python_version >= "3.11")',
        'tomli absent -> 2.5.0  (python_version < "3.11")',
        "torch 2.13.0 -> 2.14.0",
    ]


def test_lower_versions_are_found():
    old = {"typepy": "1.3.5", "numpy": "2.9", "certifi": "2026.10.18"}
    new = {"typepy": "0.3.1", "numpy": "2.10", "certifi": "2026.10.19.post1", "new": "1"}
    assert update_constraints.find_downgrades(old, new) == ["typepy"]


def test_packages_of_the_cuda_build_are_left_out():
    text = "nvidia-cublas-cu12==1\nnvidia-ml-py==13.6\ntriton==3.7\ncuda-bindings==13 ; x\nPyYAML==6.0.4\n"
    assert update_constraints.read_versions(text) == {"nvidia-ml-py": "13.6", "pyyaml": "6.0.4"}


def test_resolves_each_python_once_and_keeps_torch(monkeypatch, tmp_path):
    calls = []

    def resolve(python, system, extras, constraints):
        calls.append((python, system))
        assert "torch==2.13.0" in constraints
        versions = {"torch": "2.13.0", "numpy": "2.2.7" if python == "3.10" else "2.5.0", "jinja2": "3.1.6"}
        if extras != list(update_constraints.TESTED_EXTRAS):
            versions["lm-eval"] = "0.4.14"
        return versions | ({"colorama": "0.4.6"} if system == "windows" else {})

    monkeypatch.setattr(update_constraints, "resolve", resolve)
    new = update_constraints.resolve_all(update_constraints.parse_pins(TEXT), update_torch=False)
    assert len(calls) == 8
    text = update_constraints.format_pins(new)
    assert text.startswith('# The exact versions.\nJinja2==3.1.6\nnumpy==2.2.7 ; python_version < "3.11"\n')
    assert text.endswith("torch==2.13.0\n# Only for other extras.\ncolorama==0.4.6\nlm_eval==0.4.14\n")


def test_an_old_release_is_taken_only_if_the_pin_is_impossible(monkeypatch):
    def resolve(python, system, extras, constraints):
        if "blake3>=1.0.11" in constraints:
            return {}
        if "typepy>=1.3.5" in constraints:
            return {"typepy": "1.3.5", "python-dateutil": "3.0", "blake3": "1.0.10"}
        return {"typepy": "0.3.1", "python-dateutil": "4.0", "blake3": "1.0.10"}

    monkeypatch.setattr(update_constraints, "resolve", resolve)
    old = {"typepy": "1.3.5", "python-dateutil": "2.9", "blake3": "1.0.11"}
    newest = update_constraints.resolve_newest("3.10", [], old, [])
    assert newest == {"typepy": "1.3.5", "python-dateutil": "3.0", "blake3": "1.0.10"}
