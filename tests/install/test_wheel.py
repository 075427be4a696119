"""The wheel contains the package with its recipes and docs and nothing else, and works away from the checkout."""

import email
import json
import os
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

from lora_chat import __version__

ROOT = Path(__file__).parents[2]
FOLDERS = {"recipes": {".yaml", ".jsonl", ".md"}, "docs": {".md"}, "launch": {".yaml", ".sh"}}
SOURCES = ("lora_chat", *FOLDERS, "pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "LICENSE", "SECURITY.md")
DIST_INFO = {"METADATA", "RECORD", "WHEEL", "entry_points.txt", "licenses/LICENSE", "top_level.txt"}
PLANTED = (
    "build/lib/lora_chat/deleted_module.py",
    "lora_chat/data/.rows.jsonl",
    "lora_chat/data/my_rows.jsonl",
    "lora_chat/system/__pycache__/worker.cpython-311.pyc",
    "lora_chat_notes/__init__.py",
    "recipes/.cache/rows.jsonl",
    "recipes/quickstart/dialogues.jsonl~",
    "recipes/quickstart/weights.safetensors",
    "runs/smoke-1/adapter.jsonl",
    "tests/test_rows.py",
)
"""Files in a checkout that belong into no wheel."""
BUILD = """
import os, shutil, tarfile
from setuptools import build_meta
sdist = build_meta.build_sdist("sdist")
shutil.rmtree("lora_chat.egg-info")
build_meta.build_wheel("from-tree")
tarfile.open(os.path.join("sdist", sdist)).extractall("unpacked", filter="data")
os.chdir(os.path.join("unpacked", sdist.removesuffix(".tar.gz")))
build_meta.build_wheel("../../from-sdist")
"""


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """Return a folder with the source distribution, and the wheels from the tree and from that distribution."""
    folder = tmp_path_factory.mktemp("build")
    for name in SOURCES:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copyfile(source, folder / name)
    for name in PLANTED:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("planted")
    subprocess.run([sys.executable, "-I", "-c", BUILD], cwd=folder, check=True, capture_output=True)
    return folder


def list_expected_files():
    package = {path.relative_to(ROOT).as_posix() for path in (ROOT / "lora_chat").rglob("*") if path.is_file()}
    beside = {
        f"lora_chat/{path.relative_to(ROOT).as_posix()}"
        for name, suffixes in FOLDERS.items()
        for path in (ROOT / name).rglob("*")
        if path.suffix in suffixes
    }
    return {name for name in package if "/__pycache__/" not in name} | beside


def read_wheel(folder):
    (path,) = folder.glob("*.whl")
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def test_contains_exactly_the_package_its_data_and_the_folders(built):
    files = read_wheel(built / "from-tree")
    metadata = f"lora_chat-{__version__}.dist-info/"
    assert {name for name in files if not name.startswith(metadata)} == list_expected_files()
    assert {name.removeprefix(metadata) for name in files if name.startswith(metadata)} == DIST_INFO
    assert files["lora_chat/recipes/quickstart.yaml"] == (ROOT / "recipes" / "quickstart.yaml").read_bytes()
    assert files["lora_chat/docs/data.md"] == (ROOT / "docs" / "data.md").read_bytes()


def test_wheel_of_the_source_distribution_equals_the_wheel_of_the_tree(built):
    assert read_wheel(built / "from-sdist") == read_wheel(built / "from-tree")


def test_source_distribution_contains_no_planted_file(built):
    (path,) = (built / "sdist").glob("*.tar.gz")
    with tarfile.open(path) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {"pyproject.toml", "setup.py", "README.md", "recipes/quickstart.yaml", "launch/slurm.sh"} <= names
    assert not names & set(PLANTED)


def test_metadata_is_complete(built):
    metadata = email.message_from_bytes(read_wheel(built / "from-tree")[f"lora_chat-{__version__}.dist-info/METADATA"])
    assert metadata["License-Expression"] == "Apache-2.0" and metadata["License-File"] == "LICENSE"
    assert metadata["Requires-Python"] == ">=3.10" and metadata["Description-Content-Type"] == "text/markdown"
    assert metadata["Keywords"] and "Typing :: Typed" in metadata.get_all("Classifier")
    assert metadata.get_payload().startswith("# lora_chat")


USE = """
import contextlib, io, json, sys
from pathlib import Path
from lora_chat.cli import main


def call(*arguments, stdin=""):
    out, err, sys.stdin = io.StringIO(), io.StringIO(), io.StringIO(stdin)
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(list(arguments))
    assert code == 0, (arguments, err.getvalue())
    return out.getvalue()


results = {
    "recipes": json.loads(call("recipes", "--json")),
    "sft": json.loads(call("sft", "smoke", "--json")),
    "chat": call("chat", "runs/smoke-1", stdin="Hello\\n"),
    "pack": json.loads(call("pack", "runs/smoke-1", "--out", "smoke.lorachat", "--json")),
    "verify": json.loads(call("verify", "smoke.lorachat", "--json")),
    "copied": call("recipes", "--copy", "copy"),
}
modules = {name: module for name, module in sys.modules.items() if name.split(".")[0] == "lora_chat"}
results["modules"] = {name: module.__file__ for name, module in modules.items()}
Path("results.json").write_text(json.dumps(results))
"""


@pytest.fixture(scope="module")
def installed(built, tmp_path_factory):
    """Return the Python of an environment with the wheel; its libraries are those of the tests, without lora_chat."""
    if os.name == "nt":
        pytest.skip("the environment has the layout of POSIX")
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, symlinks=True, with_pip=False)
    python = folder / "bin" / "python"
    (wheel,) = (built / "from-tree").glob("*.whl")
    pip = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps", "--no-index"]
    subprocess.run([*pip, "--no-compile", wheel], check=True, cwd=folder)
    (site,) = folder.glob("lib/python*/site-packages")
    # A path in a .pth file does not run the .pth files of that folder, so an editable install is not visible.
    (site / "libraries.pth").write_text("".join(f"{path}\n" for path in sys.path if path.endswith("-packages")))
    return python


def test_works_away_from_the_checkout(installed, tmp_path):
    folder = tmp_path / "empty"
    folder.mkdir()
    environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([installed, "-I", "-c", USE], cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    results = json.loads((folder / "results.json").read_text())
    package = installed.parents[1] / "lib"
    assert len(results["modules"]) > 100
    assert [name for name, file in results["modules"].items() if not Path(file).is_relative_to(package)] == []
    recipes = {recipe["name"]: Path(recipe["file"]) for recipe in results["recipes"]}
    assert recipes.keys() >= {"quickstart", "smoke", "summary"}
    assert recipes["smoke"].is_relative_to(package)
    assert Path(results["sft"]["run"]).resolve() == (folder / "runs" / "smoke-1").resolve()
    assert results["sft"]["steps"] > 0
    assert results["chat"].strip()
    assert (folder / "smoke.lorachat").is_file() and (folder / "copy" / "quickstart" / "dialogues.jsonl").is_file()
    assert results["verify"]["passed"] and results["verify"]["receipt"]["versions"]["lora-chat"] == __version__
    assert results["pack"]["sha256"] == results["verify"]["sha256"]


def test_command_starts_fast_and_reads_the_wheel(installed, tmp_path):
    done = subprocess.run(
        [installed.with_name("lora-chat"), "recipe", "summary"], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "summary/dialogues.jsonl" in done.stdout


@pytest.mark.skipif(os.environ.get("LORA_CHAT_ALL_BASES") != "1", reason="on demand")
@pytest.mark.timeout(3000)
def test_fresh_environment_from_the_index_runs_the_quickstart(built, tmp_path):
    folder, run = tmp_path / "environment", tmp_path / "empty"
    run.mkdir()
    venv.create(folder, with_pip=True)
    (wheel,) = (built / "from-tree").glob("*.whl")
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path / "cache"), "XDG_CONFIG_HOME": str(tmp_path / "conf")}
    if "PIP_FIND_LINKS" not in os.environ:
        environment["PIP_EXTRA_INDEX_URL"] = "https://download.pytorch.org/whl/cpu"

    def call(name, *arguments):
        command = [folder / "bin" / name, *arguments]
        done = subprocess.run(command, cwd=run, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-2000:]
        return done.stdout

    call("pip", "install", "--quiet", "-c", ROOT / "constraints.txt", wheel)
    assert "nvidia-cu" not in call("pip", "list")  # otherwise the index has given PyTorch's build for CUDA
    assert json.loads(call("lora-chat", "fetch-base", "--json"))["was_ready"] is False
    steps = ("--set", "training.max_steps=3", "--set", "evaluation.questions=null", "--set", "evaluation.samples=1")
    assert json.loads(call("lora-chat", "sft", "quickstart", "--json", *steps))["steps"] == 3
    assert call("lora-chat", "generate", "runs/quickstart-1", "When do you open?", "--chat").strip()
