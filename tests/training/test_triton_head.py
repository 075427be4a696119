"""TRL's loss does without Triton where Triton cannot compile its driver."""

import subprocess
import sys
import types

import pytest
import torch

from lora_chat.training.triton_head import find_triton_problem, use_working_head

try:
    from trl.kernels import chunked_logprob
except ImportError:  # TRL 1.14
    chunked_logprob = None

CUDA = torch.device("cuda")
NEEDS_SWITCH = pytest.mark.skipif(
    chunked_logprob is None, reason="this release of TRL computes its loss without Triton"
)


class Driver:
    """Triton's driver, which is compiled at its first use."""

    def __init__(self, error=None):
        self._error = error

    @property
    def active(self):
        if self._error:
            raise self._error
        return types.SimpleNamespace(get_current_device=lambda: 0)


@pytest.fixture
def triton(monkeypatch):
    """Return a function that installs a Triton whose driver starts or raises an error."""

    def install(error=None):
        module = types.ModuleType("triton.runtime.driver")
        module.driver = Driver(error)
        for name in ("triton", "triton.runtime"):
            monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
        monkeypatch.setitem(sys.modules, "triton.runtime.driver", module)
        monkeypatch.setattr(chunked_logprob, "_TRITON_AVAILABLE", True)

    return install


@NEEDS_SWITCH
@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("Failed to find C compiler. Please specify via CC environment variable."),
        subprocess.CalledProcessError(1, ["gcc", "main.c"]),  # without Python.h
        ImportError("libcuda.so.1 cannot be found"),
    ],
)
def test_torch_is_used_if_the_driver_does_not_start(triton, error):
    triton(error)
    assert chunked_logprob._use_triton(CUDA)  # otherwise the switch is no longer needed
    note = use_working_head(CUDA)
    assert str(error).splitlines()[0] in note
    assert "Fix:" in note
    assert not chunked_logprob._use_triton(CUDA)
    assert use_working_head(CUDA) == ""  # one note


@NEEDS_SWITCH
def test_triton_is_used_if_its_driver_starts(triton):
    triton()
    assert use_working_head(CUDA) == ""
    assert chunked_logprob._use_triton(CUDA)


@NEEDS_SWITCH
def test_nothing_is_tried_on_a_cpu_or_without_triton(triton):
    triton(RuntimeError("never asked"))
    assert use_working_head(torch.device("cpu")) == ""
    chunked_logprob._TRITON_AVAILABLE = False
    assert use_working_head(CUDA) == ""


def test_nothing_is_tried_if_the_loss_of_this_trl_has_no_triton(monkeypatch):
    if chunked_logprob:
        monkeypatch.delattr("trl.kernels.chunked_logprob")
        monkeypatch.setitem(sys.modules, "trl.kernels.chunked_logprob", None)
    assert use_working_head(CUDA) == ""


def test_missing_triton_is_a_problem_in_one_line(monkeypatch):
    for name in ("triton", "triton.runtime", "triton.runtime.driver"):  # it may be installed and imported
        monkeypatch.setitem(sys.modules, name, None)
    assert "triton" in find_triton_problem()
