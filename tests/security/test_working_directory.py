"""No file of a stranger's working directory runs in any command."""

import json
import os
import shutil
import subprocess
import sys
from importlib.metadata import packages_distributions
from importlib.util import find_spec
from pathlib import Path

import pytest

from lora_chat.cli import main
from lora_chat.config.recipe import BaseSection
from lora_chat.export import llama_cpp_converters
from lora_chat.models.base_model import find_base
from lora_chat.models.bundled import find_bundled_base

ROOT = Path(__file__).parents[2]
SCRIPT = shutil.which("lora-chat", path=str(Path(sys.executable).parent))
SECRETS = {"HF_TOKEN": "canary-1", "SOME_API_KEY": "canary-2", "AWS_PROFILE": "canary-3", "X": "https://a:canary-4@b.c"}
OPTIONAL = {
    *("sitecustomize", "usercustomize", "tensorflow", "flax", "jax", "sklearn", "flash_attn", "kernels", "xformers"),
    *("torchvision", "torchaudio", "deepspeed", "wandb", "mlflow", "vllm", "triton", "IPython", "dotenv", "gguf"),
    *("llama_cpp", "pip", "_ops", "_classes", "conversion", "src", "setup", "conftest", "six", "orjson", "colorama"),
}
# Python and the start script import others of these before lora_chat can do anything about PYTHONPATH.
IMPORTED_LATER = {
    "argparse",
    "json",
    "shlex",
    "yaml",
    "platformdirs",
    "pydantic",
    "torch",
    "numpy",
    "resource",
    "jinja2",
}


def plant(folder, names, marks):
    """Fill a folder with modules and packages that leave a mark when they are imported."""
    folder.mkdir(parents=True, exist_ok=True)
    source = f"open({str(marks)!r}, 'a').write(__file__ + '\\n')\n"
    for number, name in enumerate(sorted(names)):
        if number % 2 or name == "lora_chat":
            (folder / name).mkdir()
            for inner in ("__init__", "__main__", "probe_worker", "cli"):
                (folder / name / f"{inner}.py").write_text(source)
        else:
            (folder / f"{name}.py").write_text(source)


def write_job(folder):
    shutil.copy(ROOT / "recipes" / "smoke.yaml", folder)
    (folder / "smoke").mkdir(exist_ok=True)  # a module of that name may be there
    shutil.copy(ROOT / "recipes" / "smoke" / "dialogues.jsonl", folder / "smoke")


def plant_program(path, marks):
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"#!/bin/sh\necho {path} >> {marks}\nexit 1\n")
    path.chmod(0o755)


# Runs every command in one process, as the console script would, and notes how each child was started.
DRIVER = """
import glob, io, json, os, sys
from importlib.util import find_spec
import lora_chat.cli
from lora_chat.pipeline import machine_benchmark
from lora_chat.system import worker

started, stock = [], worker.subprocess.Popen

class Noted(stock):
    def __init__(self, words, **options):
        if words[0] == sys.executable:  # others are started by libraries, such as matplotlib's fc-list
            started.append([words, str(options["cwd"]), options["env"]])
        super().__init__(words, **options)

worker.subprocess.Popen = Noted
machine_benchmark.MIN_BASE_WEIGHTS = 0
out, codes = sys.argv[1], {}
GGUF = ["--to", "gguf", "--type", "f32"]
to = ["--set", f"output.directory={out}/runs"]
commands = [
    ["plan", "smoke.yaml", *to],
    ["data", "smoke.yaml", "--show", "1", *to],
    ["audit", "smoke.yaml", *to],
    ["sft", "smoke.yaml", *to],
    ["eval", "RUN"],
    ["chat", "RUN", "--max-new-tokens", "2"],
    ["merge", "RUN", "--to", f"{out}/merged"],
    ["export", "RUN", *(GGUF if find_spec("llama_cpp") else ["--to", "peft"]), "--out", f"{out}/export"],
    ["pack", "RUN", "--out", f"{out}/x.lorachat"],
    ["verify", f"{out}/x.lorachat"],
]
for words in commands:
    sys.stdin = io.StringIO("hello\\n")
    run = (glob.glob(f"{out}/runs/smoke-*") or [""])[0]
    codes[words[0]] = lora_chat.cli.main([run if word == "RUN" else word for word in words])
with open(f"{out}/noted.json", "w") as file:
    json.dump({"codes": codes, "started": started}, file)
"""


@pytest.fixture(scope="module")
def every_command(cache_home, tmp_path_factory):
    """Run every command in a folder with a marker for every module that could be imported."""
    find_bundled_base("tiny-random")
    home = tmp_path_factory.mktemp("working-directory")
    here, marks, out = home / "stranger", home / "marks", home / "out"
    packages = {name for name in packages_distributions() if name.isidentifier()}  # some wheels list files too
    plant(here, {*sys.stdlib_module_names, *packages, *OPTIONAL, "lora_chat"} - {"__main__"}, marks)
    write_job(here)
    for name in ("fc-list", "nvidia-smi", "ldconfig", "gcc", "uname", "python", "pip"):
        plant_program(here / name if not (here / name).exists() else here / "bin" / name, marks)
    (here / "matplotlibrc").write_text("text.usetex: True\nbackend: module://torch\nfigure.hooks: torch:hook\n")
    plant_program(home / "programs" / "latex", marks)  # the user's own, which the planted settings would start
    (here / ".env").write_text("HF_HUB_OFFLINE=0\n")
    out.mkdir()
    (home / "driver.py").write_text(DRIVER)
    path = os.pathsep.join(["", ".", str(home / "programs"), os.environ["PATH"]])
    done = subprocess.run(
        [sys.executable, home / "driver.py", out],
        cwd=here,
        env={**os.environ, **SECRETS, "PATH": path, "OMP_NUM_THREADS": "1", "PYTHONPATH": ""},
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert (out / "noted.json").exists(), done.stdout + done.stderr
    return json.loads((out / "noted.json").read_text()) | {
        "marks": marks.read_text() if marks.exists() else "",
        "said": done.stdout + done.stderr,
        "plots": [path.name for path in out.glob("runs/*/loss.png")],
        "here": here,
    }


@pytest.mark.slow
def test_no_planted_file_runs_in_any_command(every_command):
    assert every_command["marks"] == ""
    codes = every_command["codes"]
    # llama.cpp's converter runs, and does not know this tokenizer.
    assert codes.pop("export") == (7 if find_spec("llama_cpp") else 0), every_command["said"]
    assert set(codes.values()) == {0}, every_command["said"]
    assert every_command["plots"] == ["loss.png"]


@pytest.mark.slow
def test_every_child_is_isolated_and_gets_no_secret(every_command):
    started = every_command["started"]
    code = {json.loads(words[-1])["code"].split("/")[-1] for words, _, _ in started}
    assert {"lora_chat.pipeline.machine_benchmark_worker", "peft_worker.py"} <= code
    for words, folder, environment in started:
        assert words[:2] == [sys.executable, "-I"]
        assert Path(folder) != every_command["here"]
        assert not set(SECRETS) & set(environment)
        assert "canary" not in json.dumps([words, environment])
        assert str(every_command["here"]) not in json.dumps(environment.get("PATH"))
        assert "PYTHONPATH" not in environment


@pytest.fixture
def light(tmp_path):
    """Run a command without heavy libraries in a folder with markers, and return the marks that it leaves."""
    plant(tmp_path / "here", IMPORTED_LATER, tmp_path / "marks")
    write_job(tmp_path / "here")

    def call(command, search_path=None):
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        if search_path is not None:
            environment["PYTHONPATH"] = search_path
        done = subprocess.run(
            [*command, "recipe", "smoke.yaml"],
            cwd=tmp_path / "here",
            env=environment,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0, done.stderr
        assert "tiny-random" in done.stdout
        return (tmp_path / "marks").read_text() if (tmp_path / "marks").exists() else ""

    return call


@pytest.mark.parametrize("search_path", [None, "", ".", os.pathsep + "/x", "/x" + os.pathsep, "./", "../here"])
def test_console_script_imports_nothing_from_the_working_directory(light, search_path):
    if SCRIPT is None:
        pytest.skip("the console script is not installed")
    assert light([SCRIPT], search_path) == ""


def test_module_lora_chat_imports_nothing_from_the_working_directory(light):
    assert light([sys.executable, "-m", "lora_chat"]) == ""
    assert light([sys.executable, "-m", "lora_chat"], os.pathsep + "/x") == ""


def test_absolute_search_path_of_the_user_is_used(light, tmp_path):
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "shlex.py").write_text(
        f"open({str(tmp_path / 'marks')!r}, 'w').write('own')\njoin = quote = print"
    )
    assert light([sys.executable, "-m", "lora_chat"], str(tmp_path / "own")) == "own"


def test_relative_library_path_is_reported_once(monkeypatch, capsys):
    monkeypatch.setenv("LD_LIBRARY_PATH", os.pathsep + "/usr/lib")
    for _ in range(2):
        assert main(["recipe", str(ROOT / "recipes" / "smoke.yaml")]) == 0
    assert capsys.readouterr().err.count("LD_LIBRARY_PATH has an empty") == 1
    assert os.environ["LD_LIBRARY_PATH"] == "/usr/lib"


@pytest.mark.slow
def test_converters_run_no_code_of_the_model(tmp_path):
    """llama.cpp's scripts load tokenizers with trust_remote_code=True."""
    model, marks = tmp_path / "model", tmp_path / "marks"
    shutil.copytree(find_bundled_base("tiny-random"), model)
    (model / "evil.py").write_text(f"open({str(marks)!r}, 'w').write('ran')\nclass Evil: pass\n")
    settings = json.loads((model / "tokenizer_config.json").read_text())
    settings |= {"auto_map": {"AutoTokenizer": ["evil.Evil", "evil.Evil"]}, "tokenizer_class": "Evil"}
    (model / "tokenizer_config.json").write_text(json.dumps(settings))
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "sibling.py").write_text("from transformers import AutoTokenizer")
    (tmp_path / "code" / "convert.py").write_text(
        "import sys\nfrom pathlib import Path\nfrom sibling import AutoTokenizer\n"
        "try:\n    AutoTokenizer.from_pretrained(sys.argv[1], trust_remote_code=True)\n"
        "except Exception as error:\n    print(error, file=sys.stderr)\n"
        "Path(sys.argv[2]).write_text('converted')\n"
    )
    llama_cpp_converters.convert(tmp_path / "code" / "convert.py", model, [tmp_path / "to"])
    assert (tmp_path / "to").read_text() == "converted"
    assert not marks.exists()


def test_converters_are_not_taken_from_a_folder_named_relatively(tmp_path, monkeypatch):
    (tmp_path / "llama").mkdir()
    (tmp_path / "llama" / "convert_hf_to_gguf.py").touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LORA_CHAT_LLAMA_CPP", "llama")
    with pytest.raises(llama_cpp_converters.UnavailableError, match="depends on the working directory"):
        llama_cpp_converters.find_converters()


def test_converter_that_hangs_is_stopped(tmp_path, monkeypatch):
    (tmp_path / "x.py").write_text("import time\ntime.sleep(300)")
    monkeypatch.setattr(llama_cpp_converters, "worker_timeout_seconds", lambda _: 0.2)
    with pytest.raises(llama_cpp_converters.IntegrityError, match="stopped after"):
        llama_cpp_converters.convert(tmp_path / "x.py", tmp_path, [])


def test_folder_with_the_name_of_a_hub_model_is_announced(cache_home, tmp_path, monkeypatch, messages):
    shutil.copytree(find_bundled_base("tiny-random"), tmp_path / "OWNER" / "NAME")
    monkeypatch.chdir(tmp_path)
    assert find_base(BaseSection(name="OWNER/NAME")).name == str(tmp_path / "OWNER" / "NAME")
    assert "not the hub's" in messages[0]
    messages.clear()
    find_base(BaseSection(name="./OWNER/NAME"))
    assert messages == []
