"""The notebook runs from its data to the delivered model: as it is on demand, with random layers by default."""

import contextlib
import io
import json
import os
import re
import shlex
from pathlib import Path

import pytest

from lora_chat.cli import main

NOTEBOOK = json.loads((Path(__file__).parents[1] / "notebooks" / "quickstart.ipynb").read_text(encoding="utf-8"))
CODE = ["".join(cell["source"]) for cell in NOTEBOOK["cells"] if cell["cell_type"] == "code"]
SETTINGS = 'BASE, STEPS = "smollm2-135m-instruct", 30'
ON_DEMAND = pytest.mark.skipif(os.environ.get("LORA_CHAT_ALL_BASES") != "1", reason="on demand")


def test_notebook_has_no_outputs_and_unique_ids():
    assert (NOTEBOOK["nbformat"], NOTEBOOK["nbformat_minor"]) == (4, 5)
    ids = [cell["id"] for cell in NOTEBOOK["cells"]]
    assert len(set(ids)) == len(ids)
    for cell in NOTEBOOK["cells"]:
        if cell["cell_type"] == "code":
            assert (cell["outputs"], cell["execution_count"]) == ([], None)


def run_shell_line(line):
    """Run a line `!lora-chat ...` in this process, because each process would import for seconds."""
    program, *words = shlex.split(line)
    assert program == "lora-chat"
    output = io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
        code = main(words)
    assert code == 0, output.getvalue()


@pytest.mark.slow
@pytest.mark.parametrize("base", ["tiny-random", pytest.param("smollm2-135m-instruct", marks=ON_DEMAND)])
def test_notebook_delivers_a_model(cache_home, tmp_path, monkeypatch, base):
    monkeypatch.chdir(tmp_path)
    names = {"run_shell_line": run_shell_line}
    assert CODE[0] == SETTINGS
    for cell in [CODE[0] if base in CODE[0] else f'BASE, STEPS = "{base}", 2', *CODE[1:]]:
        # In a shell line, IPython replaces Python expressions in braces.
        exec(re.sub(r"^!(.*)$", r"run_shell_line(f'''\1''')", cell, flags=re.MULTILINE), names)
    assert isinstance(names["answer"], str)
    assert (tmp_path / "quickstart-work" / "tools.lorachat").is_file()
    loss = names["result"]["validation_loss"]
    assert loss["adapted"] < loss["base"]
