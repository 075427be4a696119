"""A run that runs out of memory after training shows where its adapter is."""

from pathlib import Path

import pytest
import torch

from lora_chat.errors import OutOfMemoryError
from lora_chat.pipeline.run_status import RunProgress
from lora_chat.runs.run_folder import RunFolder


def test_out_of_memory_after_training_names_the_adapter():
    progress = RunProgress(stage="comparing base and adapted", run=RunFolder(Path("runs/a b")))
    with pytest.raises(OutOfMemoryError) as caught, progress.explain_out_of_memory():
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
    text = str(caught.value)
    assert "while comparing base and adapted. The adapter is saved: lora-chat chat 'runs/a b'" in text
    assert "lora-chat eval 'runs/a b'" in text


def test_other_errors_after_training_stay():
    progress = RunProgress(run=RunFolder(Path("runs/a")))
    with pytest.raises(RuntimeError, match="shapes"), progress.explain_out_of_memory():
        raise RuntimeError("shapes differ")
