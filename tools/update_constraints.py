"""Update constraints.txt to the newest releases that pyproject.toml allows: `make update`.

    make update                         write constraints.txt and print every change
    make update ARGS=--dry-run          print the changes only
    make update ARGS=--torch            update PyTorch, too; its version decides which graphics drivers work

uv resolves the requirements for Python 3.10 and for newer versions, on Linux, Windows and macOS. Nothing is installed:
the next `make` sees the new file and installs from it.
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
UV = (sys.executable, "-m", "uv")
TESTED_EXTRAS = ("dev", "sign", "gguf", "serve")
"""Extras that `make test` installs."""
PYTHONS = {"3.10": 'python_version < "3.11"', "3.11": 'python_version >= "3.11"'}
"""Versions to resolve for, with the marker of a pin that the other version does not share."""
SYSTEMS = ("linux", "windows", "macos")
OLDEST_MACOS = "14.0"
"""The version of macOS that the wheels of bitsandbytes need."""
INSTALLED_BY_MAKE = ("pip",)
"""Packages that the Makefile installs and no package requires."""
CUDA = re.compile(r"nvidia-(?!ml-py)|cuda-|triton$")
"""Requirements of PyTorch's build for CUDA, whose versions PyTorch itself pins."""
SECTION = "# Only for "
"""Beginning of the comment above the pins that `make test` does not install."""

Versions = dict[str, dict[str, str]]
"""Version by package and by version of Python."""


@dataclass(frozen=True)
class Pins:
    """The pins of constraints.txt."""

    tested: Versions
    others: Versions
    """Packages for other extras and systems."""
    spelling: dict[str, str]
    """Name of a package by its normalized name."""
    comments: tuple[str, str]
    """The comment of each section."""

    def merged(self) -> Versions:
        """Return the versions of both sections."""
        return self.tested | self.others


def normalize(name: str) -> str:
    """Return the form of a package's name that package indexes compare."""
    return re.sub(r"[-_.]+", "-", name).lower()


def parse_pins(text: str) -> Pins:
    """Read the text of constraints.txt."""
    comments = [line for line in text.splitlines() if line.startswith("#")]
    if len(comments) != 2 or not comments[1].startswith(SECTION):
        raise SystemExit(f"constraints.txt needs two comments, the second beginning with {SECTION!r}.")
    sections: tuple[Versions, Versions] = {}, {}
    spelling = {}
    for number, part in enumerate(text.split(comments[1])):
        for line in filter(None, part.splitlines()):
            if line.startswith("#"):
                continue
            pin, _, marker = (item.strip() for item in line.partition(";"))
            name, _, version = pin.partition("==")
            spelling[normalize(name)] = name
            pythons = [python for python, text in PYTHONS.items() if marker in ("", text)]
            if not version or not pythons:
                raise SystemExit(f"Unknown line in constraints.txt: {line}")
            sections[number].setdefault(normalize(name), {}).update(dict.fromkeys(pythons, version))
    return Pins(*sections, spelling, (comments[0], comments[1]))


def format_pins(pins: Pins) -> str:
    """Return the text of constraints.txt, sorted, with one line for versions that every Python shares."""
    lines = []
    for comment, section in zip(pins.comments, (pins.tested, pins.others), strict=True):
        lines.append(comment)
        entries = []
        for package, versions in section.items():
            name = pins.spelling.get(package, package)
            if len(versions) == len(PYTHONS) and len(set(versions.values())) == 1:
                entries.append(f"{name}=={next(iter(versions.values()))}")
            else:
                entries += [f"{name}=={version} ; {PYTHONS[python]}" for python, version in versions.items()]
        lines += sorted(entries, key=lambda line: (line.partition("==")[0].lower() + "==", line))
    return "\n".join(lines) + "\n"


def describe_changes(old: Versions, new: Versions) -> list[str]:
    """Return a line for every package that was added, removed or has another version."""
    lines = []
    for package in sorted(old.keys() | new.keys()):
        before, after = old.get(package, {}), new.get(package, {})
        changes: dict[str, list[str]] = {}
        for python in PYTHONS:
            if before.get(python) != after.get(python):
                change = f"{before.get(python, 'absent')} -> {after.get(python, 'absent')}"
                changes.setdefault(change, []).append(python)
        for change, pythons in changes.items():
            limit = "" if len(pythons) == len(PYTHONS) else f"  ({PYTHONS[pythons[0]]})"
            lines.append(f"{package} {change}{limit}")
    return lines


def read_versions(text: str) -> dict[str, str]:
    """Return version by package of a list that uv resolved, without the packages of PyTorch's build for CUDA."""
    pins = re.findall(r"^([\w.-]+)==([^\s;]+)", text, re.MULTILINE)
    return {normalize(name): version for name, version in pins if not CUDA.match(normalize(name))}


def find_downgrades(old: dict[str, str], new: dict[str, str]) -> list[str]:
    """Return the packages whose new version is lower."""

    def key(version: str) -> list[int]:
        return [int(digits) for digits in re.findall(r"\d+", version)]

    return [name for name, version in new.items() if name in old and key(version) < key(old[name])]


def resolve(python: str, system: str, extras: list[str], constraints: list[str]) -> dict[str, str]:
    """Return the newest versions that satisfy pyproject.toml and some constraints; empty if none do."""
    command = [*UV, "pip", "compile", "--quiet", "--no-header", "--no-annotate", "--prerelease", "disallow"]
    command += ["--python-version", python, "--python-platform", system]
    command += [*(word for extra in extras for word in ("--extra", extra))]
    with tempfile.TemporaryDirectory() as folder:
        limits, more = Path(folder, "constraints.txt"), Path(folder, "more.in")
        limits.write_text("\n".join(constraints), encoding="utf-8")
        more.write_text("\n".join(INSTALLED_BY_MAKE), encoding="utf-8")
        command += ["--constraint", str(limits), str(more), str(ROOT / "pyproject.toml")]
        environment = {**os.environ, "MACOSX_DEPLOYMENT_TARGET": OLDEST_MACOS}
        done = subprocess.run(  # noqa: S603
            command, capture_output=True, text=True, encoding="utf-8", cwd=folder, env=environment, check=False
        )
    if done.returncode and "No solution found" in done.stderr:
        return {}
    if done.returncode:
        raise SystemExit(f"{done.stderr}\nuv failed (Python {python}, {system}).")
    return read_versions(done.stdout)


def resolve_newest(python: str, extras: list[str], old: dict[str, str], limits: list[str]) -> dict[str, str]:
    """Return the newest versions for Linux, none lower than its present pin unless that pin is impossible.

    Without a lower bound uv may take a years-old release of one package so that another one can be the newest.
    """
    newest = resolve(python, SYSTEMS[0], extras, limits)
    if not newest:
        raise SystemExit(f"No versions satisfy pyproject.toml (Python {python}). Fix: run `uv pip compile` to see why.")
    impossible: set[str] = set()
    while lower := [name for name in find_downgrades(old, newest) if name not in impossible]:
        # Bounds for all other packages, so that uv fails at once and does not try a hundred old releases.
        bounded = [name for name in newest if name in old and name not in {*lower[1:], *impossible, "torch"}]
        bounds = [f"{name}>={old[name]}" for name in bounded]
        if better := resolve(python, SYSTEMS[0], extras, [*limits, *bounds]):
            newest = better
        else:
            impossible.add(lower[0])
    return newest


def list_extras() -> list[str]:
    """Return the extras of pyproject.toml."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    section = text.split("[project.optional-dependencies]")[1].split("\n[")[0]
    return re.findall(r"^([\w-]+) = \[", section, re.MULTILINE)


def resolve_all(old: Pins, update_torch: bool) -> Pins:
    """Return the newest pins for every Python, system and extra."""
    extras = list_extras()
    tested: Versions = {}
    others: Versions = {}
    for python, marker in PYTHONS.items():
        present = {name: versions[python] for name, versions in old.merged().items() if python in versions}
        limits = [] if update_torch else [f"torch=={present['torch']}"]
        newest = resolve_newest(python, extras, present, limits)
        for system in SYSTEMS[1:]:  # Linux decides, so that all systems have the same versions
            pinned = [f"{name}=={version}" for name, version in newest.items()]
            elsewhere = resolve(python, system, extras, pinned)
            if not elsewhere:
                print(f"Warning: the versions for Linux do not fit {system} ({marker}).", file=sys.stderr)
            newest = elsewhere | newest
        pinned = [f"{name}=={version}" for name, version in newest.items()]
        names = resolve(python, SYSTEMS[0], list(TESTED_EXTRAS), pinned)
        for name, version in newest.items():
            (tested if name in names else others).setdefault(name, {})[python] = version
        print(f"Resolved {len(newest)} packages ({marker}).", file=sys.stderr)
    for name in tested.keys() & others.keys():  # only one Python needs it for the tests
        versions = tested[name] | others.pop(name)
        tested[name] = {python: versions[python] for python in PYTHONS}
    return Pins(tested, others, old.spelling, old.comments)


def main(arguments: list[str] | None = None) -> int:
    """Write constraints.txt, or only print its changes."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--dry-run", action="store_true", help="print the changes only")
    parser.add_argument("--torch", action="store_true", help="update PyTorch, too")
    options = parser.parse_args(arguments)
    path = ROOT / "constraints.txt"
    old = parse_pins(path.read_text(encoding="utf-8"))
    new = resolve_all(old, options.torch)
    changes = describe_changes(old.merged(), new.merged())
    print("\n".join(changes))
    moved = [name for name in new.others if name in old.tested] + [name for name in new.tested if name in old.others]
    if moved:
        print(f"In the other section: {', '.join(sorted(moved))}.")
    if options.dry_run:
        print(f"{len(changes)} changes; constraints.txt is unchanged (--dry-run).")
        return 0
    path.write_text(format_pins(new), encoding="utf-8", newline="\n")
    print(f"{len(changes)} changes in constraints.txt. Next: make test && git diff constraints.txt")
    return 0


if __name__ == "__main__":
    sys.exit(main())
