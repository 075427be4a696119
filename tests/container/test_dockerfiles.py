"""The Dockerfiles have two stages, a plain user and pinned versions, and send only the sources to the builder."""

import ast
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NAMES = ["Dockerfile", "Dockerfile.cuda"]
HADOLINT = os.environ.get("LORA_CHAT_HADOLINT", "")
"""Program of `make container-test`."""
DIFFERENCES = r"^#.*$|^ARG PYTORCH_INDEX=.*$|^ *NVIDIA_\w+=\S+( \\)?$|description=\".*\"| \\$"
"""Comments, index, variables of the driver and description, which differ between CPUs and cards."""


def read_steps(name):
    """Return the instructions of a Dockerfile as (name, rest), without comments, each on one line."""
    lines = [line for line in (ROOT / name).read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
    text = re.sub(r" \\\n *", " ", "\n".join(lines))
    return [tuple(line.split(" ", 1)) for line in text.splitlines() if line]


def last_of(steps, name):
    return [rest for step, rest in steps if step == name][-1]


@pytest.fixture(params=NAMES)
def steps(request):
    return read_steps(request.param)


def test_the_last_stage_takes_only_the_environment_of_the_first(steps):
    stages = [index for index, (name, _) in enumerate(steps) if name == "FROM"]
    assert len(stages) == 2
    last = steps[stages[1] :]
    assert [rest for name, rest in last if name == "COPY"] == ["--from=build /opt/lora-chat /opt/lora-chat"]
    assert not re.search(r"build-essential|gcc|pip install", str(last))


def test_image_has_a_pinned_base_and_nothing_from_an_address(steps):
    base = steps[0]
    assert base[0] == "ARG"
    assert re.fullmatch(r"PYTHON_IMAGE=python:3\.\d+\.\d+-slim-[a-z]+", base[1])
    assert {rest.split()[0] for name, rest in steps if name == "FROM"} == {"${PYTHON_IMAGE}"}
    assert "ADD" not in dict(steps)
    text = str(steps).lower()
    assert "latest" not in text
    assert not re.search(r"token|password|secret|curl|wget", text)


def test_process_has_a_numeric_user_and_receives_signals(steps):
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", last_of(steps, "USER"))
    assert ast.literal_eval(last_of(steps, "ENTRYPOINT")) == ["lora-chat"]
    assert ast.literal_eval(last_of(steps, "CMD")) == ["--help"]


def test_everything_that_is_written_is_in_the_volume(steps):
    volume = last_of(steps, "VOLUME")
    variables = dict(word.split("=", 1) for word in last_of(steps, "ENV").split())
    assert volume == last_of(steps, "WORKDIR") == variables["HOME"]
    for name in ("XDG_CACHE_HOME", "XDG_CONFIG_HOME"):
        assert variables[name].startswith(f"{volume}/")


def test_versions_are_those_of_the_checkout(steps):
    text = str(steps)
    assert "sed -n 's/^torch==//p' constraints.txt" in text.replace('"', "'").replace("\\", "")
    assert text.count("pip install -c constraints.txt") == 1
    base = re.search(r"^SMOL := (\S+)$", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    assert f"pip install --no-deps {base.group(1)}" in text


def test_both_files_differ_only_in_the_build_of_pytorch():
    plain, cuda = (re.sub(DIFFERENCES, "", (ROOT / name).read_text(), flags=re.MULTILINE).split() for name in NAMES)
    assert plain == cuda


def test_builder_receives_the_sources_of_the_wheel_and_no_other_file():
    lines = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    assert lines[1] == "*"
    sent = {line[1:] for line in lines if line.startswith("!")}
    folders = set(ast.literal_eval(re.search(r"^FOLDERS = (\{.*\})$", (ROOT / "setup.py").read_text(), re.M).group(1)))
    files = {"LICENSE", "MANIFEST.in", "README.md", "constraints.txt", "pyproject.toml", "setup.py"}
    assert sent == {"lora_chat", *folders, *files}
    assert {"**/.*", "**/__pycache__"} <= set(lines[2:])


@pytest.mark.skipif(not shutil.which(HADOLINT), reason="on demand: make container-test")
@pytest.mark.parametrize("name", NAMES)
def test_hadolint_finds_nothing(name):
    checked = subprocess.run([HADOLINT, ROOT / name], capture_output=True, text=True)
    assert (checked.returncode, checked.stdout) == (0, "")


@pytest.mark.skipif(not shutil.which(HADOLINT), reason="on demand: make container-test")
def test_hadolint_finds_a_planted_fault(tmp_path):
    (tmp_path / "Dockerfile").write_text("FROM python\nUSER root\n")
    assert subprocess.run([HADOLINT, tmp_path / "Dockerfile"], capture_output=True).returncode == 1
