"""The check on a GPU: its quickest part on an emulated card, and the programs that run and judge the parts."""

import importlib.metadata
import json
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "benchmarks" / "gpu_check"


@pytest.fixture(autouse=True)
def modules_of_the_check(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))


def run_check(*arguments):
    command = [sys.executable, str(FOLDER / "run_check.py"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=280, check=False)


@pytest.mark.skipif("LORA_CHAT_ALL_CUDA" not in os.environ, reason="on demand: make cuda-test")
def test_environment_passes_on_the_emulated_card(card, tmp_path):
    done = run_check(
        "--rehearse", "--parts", "environment", "--json", tmp_path / "out.json", "--work", tmp_path / "work"
    )
    report = json.loads((tmp_path / "out.json").read_text())
    (part,) = report["parts"]
    assert (done.returncode, part["status"]) == (0, "ok"), done.stdout + done.stderr
    assert report["device"]["capability"] == [8, 6]
    assert part["figures"]["versions"]["torch"]
    assert {check["check"] for check in part["checks"]} >= {"bitsandbytes NF4", "varlen attention, head size 128"}
    assert "PASSED (1 ok)" in done.stdout
    assert "===== environment" in (tmp_path / "out.log").read_text()


def test_machine_without_a_card_is_refused(tmp_path):
    import torch

    if torch.cuda.is_available():
        pytest.skip("This machine has a card.")
    done = run_check("--json", tmp_path / "out.json")
    assert done.returncode == 2
    assert done.stderr.startswith("Problem: no CUDA device")
    assert not (tmp_path / "out.json").exists()


PROGRAMS = {
    "good": "from check_records import Records; Records().check('it', True)",
    "bad": "from check_records import Records; r = Records(); r.add_figures('x', y=1); r.check('it', False, 'why')",
    "broken": "import sys; sys.exit('Something broke.')",
    "late": "import time; from check_records import Records; Records().check('it', True); time.sleep(60)",
    "absent": "from check_records import Records; Records().skip('it', 'no such package')",
}


def test_one_part_does_not_stop_the_others(tmp_path, monkeypatch):
    import part_process
    from check_parts import Part

    monkeypatch.setattr(part_process, "_GRACE_SECONDS", 0.1)
    parts = []
    for name, text in PROGRAMS.items():
        program = tmp_path / f"{name}.py"
        program.write_text(f"import sys; sys.path.insert(0, {str(FOLDER)!r})\n{text}\n")
        parts.append(Part(name, name, str(program), 1, 2))
    results = {r.name: r for r in part_process.run_stage(parts, sys.executable, tmp_path, "full", 100)}
    assert {name: r.status for name, r in results.items()} == {
        "good": "ok",
        "bad": "failed",
        "broken": "failed",
        "late": "failed",
        "absent": "skipped",
    }
    assert results["bad"].reason == "it: why"
    assert results["bad"].figures == {"x": {"y": 1}}
    assert "Something broke." in results["broken"].reason
    assert "time limit" in results["late"].reason
    assert results["absent"].reason == "no such package"


def test_table_and_verdict_name_the_failed_part():
    from check_report import format_table, format_verdict
    from part_process import PartResult

    results = [
        PartResult("parity", "", "failed", "gradients differ", 3.0, {"llama": {"worst": 0.123456}}),
        PartResult("chat", "", "ok", "", 2.0, {}, [{"check": "chat", "passed": True, "detail": ""}]),
    ]
    table = format_table(results)
    assert re.search(r"parity +failed +3 +gradients differ", table)
    assert "worst 0.1235" in table and "1 checks passed" in table
    assert "FAILED: parity (1 ok, 1 failed)" in format_verdict(results, 5.0, emulated=False)


def test_unknown_part_is_refused():
    done = run_check("--rehearse", "--parts", "speed")
    assert done.returncode == 1
    assert "Unknown part: speed" in done.stderr


def test_scaling_is_left_out_on_one_card_and_measured_on_several(monkeypatch, tmp_path):
    import part_processes

    monkeypatch.setenv("GPU_CHECK_RECORDS", str(tmp_path / "records.jsonl"))
    monkeypatch.setattr(sys, "argv", ["part", "--size", "full", "--work", str(tmp_path)])
    monkeypatch.setattr(part_processes, "count_cards", lambda: 1)
    part_processes.main()
    record = json.loads((tmp_path / "records.jsonl").read_text())
    assert record == {"skipped": "scaling", "reason": "one card is visible, and each process needs its own"}
    assert [part_processes.list_counts(cards) for cards in (2, 6, 8)] == [[1, 2], [1, 2, 4, 6], [1, 2, 4, 8]]


def normalize(name):
    return re.sub(r"[-_.]+", "-", name).lower()


def list_requirements(name, known, complete):
    """Collect the names of all packages that a package needs, except those that only `complete` packages need."""
    for text in importlib.metadata.requires(name) or []:
        requirement = Requirement(text)
        environment = {"extra": "", "python_version": "3.12", "sys_platform": "linux", "platform_machine": "x86_64"}
        if requirement.marker and not requirement.marker.evaluate(environment):
            continue
        if normalize(requirement.name) not in known:
            known.add(normalize(requirement.name))
            if normalize(requirement.name) not in complete:
                list_requirements(requirement.name, known, complete)
    return known


def test_kit_has_every_requirement_that_the_host_lacks():
    from pack_kit import HOST_PACKAGES, PACKAGES

    packed, on_host = ({normalize(name) for name in names} for names in (PACKAGES, HOST_PACKAGES))
    assert list_requirements("lora-chat", set(), complete=on_host) - packed - on_host == set()


def test_kit_takes_the_pins_of_the_python_version():
    from pack_kit import PACKAGES, find_pins

    constraints = (ROOT / "constraints.txt").read_text()
    pins = dict(pin.split("==") for pin in find_pins(constraints, PACKAGES, "3.12"))
    assert pins["transformers"] == importlib.metadata.version("transformers")
    old = 'a==1 ; python_version < "3.11"\na==2 ; python_version >= "3.11"\n'
    assert find_pins(old, ("a",), "3.12") == ["a==2"]
    assert find_pins(old, ("a",), "3.10") == ["a==1"]
    with pytest.raises(SystemExit, match="No pin"):
        find_pins(old, ("b",), "3.12")


def test_kit_becomes_an_environment_above_the_packages_of_the_host(tmp_path):
    from kit_environment import make_environment
    from pack_kit import shrink

    wheel = tmp_path / "kit" / "thing-1-py3-none-any.whl"
    wheel.parent.mkdir()
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("thing.py", "value = 5")
        archive.writestr("thing-1.data/purelib/other.py", "value = 6")
        archive.writestr("thing-1.data/scripts/run", "no")
    shrink(wheel)
    interpreter = make_environment(wheel.parent, tmp_path / "environment")
    program = "import thing, other, pytest; print(thing.value + other.value)"
    done = subprocess.run([interpreter, "-I", "-c", program], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "11", done.stderr


def test_programs_need_no_newer_python_than_the_host_has():
    import ast

    for path in FOLDER.glob("*.py"):
        ast.parse(path.read_text(), str(path), feature_version=(3, 10))
