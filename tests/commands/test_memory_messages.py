"""A command that runs out of memory prints one message with the fix of that command, and exits with 5."""

import pytest
import torch

from lora_chat import cli
from lora_chat.commands.memory_advice import explain_out_of_memory
from lora_chat.commands.parser import COMMANDS
from lora_chat.errors import IntegrityError, OutOfMemoryError

ARGUMENTS = {"chat": ["x"], "eval": ["x"], "merge": ["x", "--to", "y"], "export": ["x", "--to", "peft"]} | {
    "pack": ["x"],
    "verify": ["x"],
    "sft": ["x"],
}
CUDA_TEXT = "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 11.76 GiB of which"


@pytest.fixture
def run(monkeypatch, capfd):
    def run(command, error):
        def fail(options):
            raise error

        monkeypatch.setattr(COMMANDS[command], "run", fail)
        code = cli.main([command, *ARGUMENTS[command]])
        return code, capfd.readouterr().err

    return run


@pytest.fixture
def gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)


@pytest.mark.parametrize("command", ARGUMENTS)
def test_gives_one_message_and_the_exit_code(run, gpu, command):
    code, text = run(command, torch.OutOfMemoryError(CUDA_TEXT))
    assert code == 5
    assert "Out of memory on the GPU (2.00 GiB could not be allocated).\nFix: " in text
    assert "Traceback" not in text
    assert len([line for line in text.strip().splitlines() if not line.startswith("More: ")]) == 2


@pytest.mark.parametrize("command", [name for name in ARGUMENTS if name != "sft"])
def test_gives_no_training_advice_for_a_finished_adapter(run, gpu, command):
    base_error = OutOfMemoryError("The base x does not fit.", "--set quantization.mode=4bit, or a smaller base.")
    for error in (base_error, torch.OutOfMemoryError(CUDA_TEXT)):
        code, text = run(command, error)
        assert code == 5
        assert "--set" not in text
        assert "end other programs" in text
    assert ("--quantization 4bit" in text) == (command == "chat")
    assert "LORA_CHAT_DEVICE=cpu" in text


def test_keeps_the_training_advice_of_sft(run, gpu):
    code, text = run("sft", OutOfMemoryError("The base x does not fit.", "--set quantization.mode=4bit."))
    assert code == 5
    assert "The base x does not fit.\nFix: --set quantization.mode=4bit." in text


def test_error_in_the_cleanup_does_not_hide_it(run, gpu):
    def fail_twice():
        try:
            raise torch.OutOfMemoryError(CUDA_TEXT)
        finally:
            raise RuntimeError("CUDA error: invalid argument")

    with pytest.raises(RuntimeError) as caught:
        fail_twice()
    assert run("merge", caught.value)[0] == 5


@pytest.mark.parametrize("text", ["CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"])
def test_recognizes_other_errors_of_cuda(text):
    explained = explain_out_of_memory(RuntimeError(text), "eval")
    assert explained is not None
    assert explained.exit_code == 5


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory")])
def test_recognizes_a_full_main_memory(run, gpu, error):
    code, text = run("eval", error)
    assert code == 5
    assert "Out of memory.\nFix: " in text
    assert "CUDA" not in text


def test_leaves_other_errors_unchanged(run):
    assert explain_out_of_memory(RuntimeError("shapes differ"), "eval") is None
    assert explain_out_of_memory(IntegrityError("differs"), "merge") is None
    with pytest.raises(RuntimeError, match="shapes differ"):
        run("eval", RuntimeError("shapes differ"))
