"""The content of a checkpoint, checked before it is continued: its digests prove only that it is whole."""

import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_chat.errors import IntegrityError, LoraChatError
from lora_chat.models.adapter import adapter_weights
from lora_chat.models.adapter_checks import check_adapter_weights
from lora_chat.runs.checkpoints import MANIFEST, CommittedCheckpoint
from lora_chat.system.memory_limit import is_out_of_memory
from lora_chat.system.strict_json import parse_strict_json

if TYPE_CHECKING:
    from peft import PeftModel

_PICKLED_FILES = ("optimizer.pt", "scheduler.pt", "rng_state.pth")
_CHECKPOINT_FILES = {
    "adapter_model.safetensors",
    "adapter_config.json",
    "trainer_state.json",
    *_PICKLED_FILES,
    MANIFEST,
}
_MAX_STATE_BYTES = 1 << 28
"""Bytes of trainer_state.json."""


def check_checkpoint_content(commit: CommittedCheckpoint, model: "PeftModel") -> None:
    """Raise IntegrityError for a checkpoint that lora_chat would not have written, however well its digests fit.

    Pickles are unpickled as tensors and plain values alone, so that none runs code.
    """
    folder = commit.folder
    names = {path.name for path in folder.iterdir()}
    if unexpected := sorted(names ^ _CHECKPOINT_FILES):
        word = "lacks" if unexpected[0] in _CHECKPOINT_FILES else "holds"
        raise _integrity_error(folder, f"it {word} {unexpected[0]!a}")
    for name in _PICKLED_FILES:
        with _explain_file_errors(folder, name):
            _check_pickled(folder / name)
    with _explain_file_errors(folder, "trainer_state.json"):
        _check_trainer_state(folder / "trainer_state.json", commit.step)
    with _explain_file_errors(folder, "adapter_model.safetensors"):
        from safetensors.torch import load_file

        check_adapter_weights(load_file(folder / "adapter_model.safetensors"), adapter_weights(model), str(folder))


@contextmanager
def explain_resume_errors(commit: CommittedCheckpoint | None, trainer: Any) -> Iterator[None]:
    """Report as a message what goes wrong between opening a checkpoint and its first step."""
    try:
        yield
    except LoraChatError:
        raise
    except Exception as error:
        unchanged = commit is not None and trainer.state.global_step in (0, commit.step)
        if commit is None or not unchanged or is_out_of_memory(error) or isinstance(error, OSError):
            raise
        if type(error).__module__.startswith("lora_chat."):  # ways of ours to stop
            raise
        raise _integrity_error(commit.folder, f"its content does not fit ({type(error).__name__})") from error


def _check_pickled(path: Path) -> None:
    import torch
    from transformers.trainer_pt_utils import safe_globals

    with zipfile.ZipFile(path) as archive:
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
            raise ValueError("it is compressed")
    with safe_globals():
        content = torch.load(path, map_location="cpu", weights_only=True)
    if not isinstance(content, dict):
        raise ValueError("it holds no table")
    tensors = [tensor for tensor in _iterate_leaves(content) if isinstance(tensor, torch.Tensor)]
    if any(tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes() for tensor in tensors):
        raise ValueError("it repeats values")
    if not all(torch.isfinite(tensor).all() for tensor in tensors if tensor.is_floating_point()):
        raise ValueError("it holds values that are not numbers")


def _iterate_leaves(value: Any) -> Iterator[Any]:
    stack = [value]
    while stack:
        item = stack.pop()
        if isinstance(item, dict):
            stack += item.values()
        elif isinstance(item, list | tuple):
            stack += item
        else:
            yield item


def _check_trainer_state(path: Path, step: int) -> None:
    if path.stat().st_size > _MAX_STATE_BYTES:
        raise ValueError("it is too large")
    state = parse_strict_json(path.read_text(encoding="utf-8"))
    if not isinstance(state, dict) or state.get("global_step") != step:
        raise ValueError(f"it is not the state of step {step}")
    history, callbacks = state["log_history"], state["stateful_callbacks"]
    if not isinstance(history, list) or not all(isinstance(row, dict) for row in history):
        raise ValueError("its history is no list of rows")
    control = callbacks["TrainerControl"]
    flags = control["args"].values()
    if len(callbacks) != 1 or control["attributes"] or not all(isinstance(flag, bool) for flag in flags):
        raise ValueError("it holds more callbacks than training has")


@contextmanager
def _explain_file_errors(folder: Path, name: str) -> Iterator[None]:
    try:
        yield
    except LoraChatError:
        raise
    except Exception as error:  # a pickle of a stranger fails in many ways
        raise _integrity_error(folder, f"{name} is not what training writes ({type(error).__name__})") from error


def _integrity_error(folder: Path, reason: str) -> IntegrityError:
    return IntegrityError(
        f"The checkpoint {folder} cannot be continued: {reason}.\n"
        "Delete that folder to continue from the one before it, or train again without --resume."
    )
