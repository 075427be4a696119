"""The notebook runs in a Jupyter kernel from its data to a verified parcel, and shows curves and plain text only."""

import copy
import json
import os
import re
import sys
from pathlib import Path

import nbformat
import pytest
from jupyter_client.kernelspec import KernelSpec
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).parents[1] / "notebooks" / "quickstart.ipynb"
SETTINGS = 'BASE, STEPS = "smollm2-135m-instruct", 30'
ON_DEMAND = pytest.mark.skipif(os.environ.get("LORA_CHAT_ALL_BASES") != "1", reason="on demand")


class OwnPython(AsyncKernelManager):
    """A kernel in the Python of the tests, whatever kernels this user has installed."""

    @property
    def kernel_spec(self):
        words = [
            sys.executable,
            "-m",
            "ipykernel_launcher",
            "-f",
            "{connection_file}",
            "--log-level=ERROR",
            "--HistoryManager.enabled=False",
        ]
        return KernelSpec(argv=words, language="python")


def read_notebook():
    return nbformat.read(NOTEBOOK, as_version=4)


def run_notebook(folder, base, steps):
    """Run the notebook with another base and number of steps. Return its code cells with their outputs."""
    notebook = read_notebook()
    settings = [cell for cell in notebook.cells if cell.source == SETTINGS]
    assert len(settings) == 1
    settings[0].source = f'BASE, STEPS = "{base}", {steps}'
    folders = {"metadata": {"path": str(folder)}}
    NotebookClient(notebook, kernel_manager_class=OwnPython, timeout=600, resources=folders).execute()
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def shown_texts(cells):
    """Return each text that the cells show."""
    for output in (output for cell in cells for output in cell.outputs):
        yield from [output.text] if output.output_type == "stream" else [output.data.get("text/plain", "")]


def test_notebook_has_no_outputs_and_unique_ids():
    notebook = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
    nbformat.validate(copy.deepcopy(notebook))
    ids = [cell["id"] for cell in notebook["cells"]]
    assert len(set(ids)) == len(ids)
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            assert (cell["outputs"], cell["execution_count"]) == ([], None)


def test_first_code_cell_installs_the_package_only_if_it_is_missing():
    first, *others = [cell.source for cell in read_notebook().cells if cell.cell_type == "code"]
    installation = r'^if importlib\.util\.find_spec\("lora_chat"\) is None:\n    %pip install .*\blora-chat$'
    assert re.search(installation, first, re.MULTILINE)
    assert not any(re.search(r"^\s*[!%]", source, re.MULTILINE) for source in others)


@pytest.mark.slow
@pytest.mark.parametrize("base", ["tiny-random", pytest.param("smollm2-135m-instruct", marks=ON_DEMAND)])
def test_notebook_ends_with_a_verified_parcel(cache_home, tmp_path, monkeypatch, base):
    for name in ("IPYTHONDIR", "JUPYTER_RUNTIME_DIR"):
        monkeypatch.setenv(name, str(tmp_path / "jupyter"))
    cells = run_notebook(tmp_path, base, 30 if base in SETTINGS else 4)
    outputs = [output for cell in cells for output in cell.outputs]
    assert {output.output_type for output in outputs} <= {"stream", "display_data", "execute_result"}
    assert [output.text for output in outputs if output.get("name") == "stderr"] == []
    text = "\n".join(shown_texts(cells))
    assert not re.search(r"[\r\x08\x1b]|it/s|Warning", text)
    assert len([output for output in outputs if "image/png" in output.get("data", {})]) == 1
    assert "[[The tool library opens at 9:40 am.<|im_end|>]]" in text
    assert "passed: True" in text
    assert (tmp_path / "quickstart-work" / "tools.lorachat").is_file()
    before, after = map(float, re.search(r"validation loss: ([\d.]+) with the base, ([\d.]+)", text).groups())
    assert after < before
