import os
import subprocess
import sys
from pathlib import Path

import pytest

from lora_chat.cli import main

HEAVY = ["torch", "transformers", "trl", "peft", "datasets"]
LIGHT = [
    "lora_chat.config.recipe",
    "lora_chat.config.load",
    "lora_chat.config.plan",
    *(
        f"lora_chat.planning.{name}"
        for name in ("workload", "phase_memory", "phase_time", "settings_search", "estimate", "notes", "gpu_kernels")
    ),
    *(
        f"lora_chat.planning.{name}"
        for name in ("gpu_specs", "gpu_names", "calibration", "device", "training_memory", "weight_memory", "format")
    ),
    "lora_chat.models.shape",
    "lora_chat.data.dialogue",
    "lora_chat.data.parsing.rows",
    "lora_chat.cli",
]
COMMANDS = ["sft", "plan", "chat", "eval", "merge", "recipe"]
PRINT_HEAVY = f"; import sys; print(*[m for m in {HEAVY} if m in sys.modules], file=sys.stderr)"
SMOKE = Path(__file__).parents[2] / "recipes" / "smoke.yaml"


def python(*arguments):
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, timeout=120)


def heavy_after(code):
    done = python("-c", code + PRINT_HEAVY)
    assert done.returncode == 0, done.stderr
    return done.stderr.split()


def test_imports_load_no_heavy_library():
    check = f"print(*[m for m in {HEAVY} if m in sys.modules], file=sys.stderr)"
    code = "; ".join(f"import {module}; {check}" for module in LIGHT)
    assert heavy_after(f"import sys; {code}") == []


def test_check_detects_a_heavy_library():
    assert heavy_after("import sys, types; sys.modules['torch'] = types.ModuleType('torch')") == ["torch"]


def test_recipe_gpu_plan_and_schema_load_no_heavy_library():
    code = (
        "from lora_chat.system.hardware import Hardware; from lora_chat.config.plan import make_plan; "
        "from lora_chat.config.load import read_recipe; from lora_chat.cli import main; "
        "import lora_chat.pipeline.list_runs; "
        f"make_plan(read_recipe({str(SMOKE)!r}), Hardware('cuda', 'x', 80 * 10**9, True, 8)); "
        f"assert main(['recipe', '--schema']) == 0; assert main(['recipe', {str(SMOKE)!r}]) == 0"
    )
    assert heavy_after(code) == []


def test_recipe_error_loads_no_heavy_library():
    code = f"from lora_chat.cli import main; assert main(['sft', {str(SMOKE)!r}, '--set', 'a.b=1']) == 2"
    assert not set(heavy_after(code)) & set(HEAVY)


def test_help_lists_every_command():
    done = python("-m", "lora_chat", "--help")
    assert done.returncode == 0
    assert all(f"\n  {command} " in done.stdout for command in COMMANDS)
    assert done.stderr == ""


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command, capsys):
    with pytest.raises(SystemExit) as end:
        main([command, "--help"])
    assert end.value.code == 0
    out = capsys.readouterr().out
    assert f"lora-chat {command}" in out
    assert "--json" in out


def test_installed_command_prints_help():
    command = Path(sys.executable).with_name("lora-chat")
    if not os.access(command, os.X_OK):
        pytest.skip("lora_chat is not installed beside this Python")
    done = subprocess.run([command, "--help"], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0
    assert "sft" in done.stdout


@pytest.mark.parametrize("arguments", [[], ["nonsense"], ["sft"], ["merge", "run"], ["recipe"], ["sft", "a", "--sett"]])
def test_usage_error_exits_with_2_and_a_message_on_stderr(arguments, capsys):
    try:
        code = main(arguments)
    except SystemExit as end:
        code = end.code
    assert code == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.strip()


def test_module_lora_chat_exits_with_the_code_of_a_usage_error():
    done = python("-m", "lora_chat", "nonsense")
    assert (done.returncode, done.stdout) == (2, "")
    assert "Traceback" not in done.stderr
