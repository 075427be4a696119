"""The scripts of `lora-chat completion` complete commands, options, choices, recipes, runs and settings."""

import os
import re
import select
import shutil
import subprocess
import time

import pytest

from lora_chat.cli import main
from lora_chat.commands.completion import COMPLETED_VALUES, iterate_actions, write_script
from lora_chat.commands.completion_functions import SHELLS
from lora_chat.commands.parser import COMMANDS, make_parser
from lora_chat.commands.setting_names import list_setting_names

BASH_DRIVER = """
compopt() { :; }
while IFS= read -r line; do
  IFS='|' read -r -a COMP_WORDS <<< "$line|"
  COMP_CWORD=$((${#COMP_WORDS[@]} - 1))
  _lora_chat_complete
  (IFS='|'; printf '%s\\n' "${COMPREPLY[*]}")
done
"""
CASES = {
    "sf": {"sft"},
    "sft|--pro": {"--processes", "--process-timeout"},
    "sft|qui": {"quickstart"},
    "sft|my": {"my recipe.yaml"},
    r"sft|my\ r": {"my recipe.yaml"},
    "sft|quickstart|--set|training.epo": {"training.epochs="},
    "sft|quickstart|--set|evaluation.generation.t": {
        "evaluation.generation.temperature=",
        "evaluation.generation.top_p=",
    },
    "chat|runs/good-1|--quantization|": {"4bit", "8bit", "none"},
    "chat|": {"x.lorachat", "runs", "runs/good-1"},
    "verify|x": {"x.lorachat"},
    "export|runs/good-1|--to|gg": {"gguf", "gguf-adapter"},
    "clean|--only|aud": {"audits"},
    "pack|runs/good-1|--out|o": {"other.txt"},
    "runs|": {"runs"},
    "completion|": set(SHELLS),
}
"""Words of a command line, and what the last one is completed to."""
on_demand = pytest.mark.skipif(os.environ.get("LORA_CHAT_ALL_BASES") != "1", reason="only with LORA_CHAT_ALL_BASES=1")


@pytest.fixture
def folder(tmp_path):
    """Return a folder with a recipe, a run, a parcel and another file."""
    (tmp_path / "runs" / "good-1").mkdir(parents=True)
    for name in ("runs/good-1/plan.json", "my recipe.yaml", "x.lorachat", "other.txt"):
        (tmp_path / name).touch()
    return tmp_path


@pytest.fixture(scope="module")
def scripts():
    return {shell: write_script(shell) for shell in SHELLS}


def test_prints_the_same_script_every_time(scripts, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    assert main(["completion", "bash"]) == 0
    assert capsys.readouterr().out.strip() == scripts["bash"].strip()


def test_bash_completes(scripts, folder):
    script = folder / ".completion.bash"
    script.write_text(scripts["bash"] + BASH_DRIVER)
    assert subprocess.run(["bash", "-n", script]).returncode == 0
    done = subprocess.run(
        ["bash", "--norc", script], cwd=folder, input="\n".join(f"lora-chat|{case}" for case in CASES) + "\n",
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.stderr == ""
    answers = [set(filter(None, line.split("|"))) for line in done.stdout.splitlines()]
    assert dict(zip(CASES, answers, strict=True)) == CASES


def test_every_script_names_every_command_and_option(scripts):
    options = {name for action in iterate_actions(make_parser()) for name in action.option_strings if name[1] == "-"}
    for shell, script in scripts.items():
        missing = [name for name in COMMANDS if name not in script]
        missing += [name for name in options if (f"-l {name[2:]}" if shell == "fish" else name) not in script]
        assert missing == []


def test_every_argument_that_is_a_path_is_completed():
    named = {action.metavar for action in iterate_actions(make_parser()) if isinstance(action.metavar, str)}
    paths = re.compile("FILE|DIR|FOLDER|PATH|RECIPE|RUN|PARCEL|ADAPTER|BASE|THING|KEY")
    assert {metavar for metavar in named if paths.search(metavar)} <= COMPLETED_VALUES.keys() <= named


def test_settings_are_those_of_a_recipe():
    assert {"base.name", "training.epochs", "evaluation.generation.seed"} <= set(list_setting_names())


@on_demand
@pytest.mark.skipif(not shutil.which("fish"), reason="needs fish")
def test_fish_completes(scripts, folder):
    script = folder / ".completion.fish"
    script.write_text(scripts["fish"])
    for case, expected in CASES.items():
        line = f"lora-chat {case.replace('|', ' ')}"
        command = ["fish", "--no-config", "-c", f"source {script}; complete -C '{line}'"]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=60)
        assert done.stderr == ""
        shown = {line.split("\t")[0].rstrip("/") for line in done.stdout.splitlines()}
        assert expected <= shown | {"my recipe.yaml"}, case


@on_demand
@pytest.mark.skipif(not shutil.which("zsh"), reason="needs zsh")
@pytest.mark.parametrize("case", [case for case, expected in CASES.items() if len(expected) == 1])
def test_zsh_completes(scripts, folder, case):
    import pty  # Windows lacks it

    functions = folder / ".functions"
    functions.mkdir()
    (functions / "_lora-chat").write_text(scripts["zsh"])
    process, terminal = pty.fork()
    if not process:
        os.chdir(folder)
        os.environ |= {"TERM": "dumb", "PS1": "", "HOME": str(folder)}
        os.execvp("zsh", ["zsh", "-f", "-i"])
    start = f"fpath=({functions} $fpath); autoload -Uz compinit; compinit -u -D; echo READY$((6+1))\n"
    read_until(terminal, start, "READY7")
    (expected,) = CASES[case]
    read_until(terminal, f"lora-chat {case.replace('|', ' ')}\t", expected.replace(" ", "\\ "))
    os.kill(process, 9)
    os.waitpid(process, 0)


def read_until(terminal, typed, expected):
    """Type a text and wait until the terminal shows the expected one. Fail after a minute."""
    os.write(terminal, typed.encode())
    shown, end = "", time.monotonic() + 60
    while expected not in shown:
        assert time.monotonic() < end, shown
        if select.select([terminal], [], [], 1)[0]:
            shown += os.read(terminal, 1 << 16).decode(errors="replace")
