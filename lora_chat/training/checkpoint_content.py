"""The content of a checkpoint, checked before it is continued: its digests prove only that it is whole."""

import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_chat.errors import IntegrityError, LoraChatError
from lora_chat.models.adapter import adapter_weights
from lora_chat.models.adapter_checks import check_weights
from lora_chat.runs.checkpoints import MANIFEST, Commit
from lora_chat.system.memory_limit import is_out_of_memory
from lora_chat.system.strict_json import parse_json

if TYPE_CHECKING:
    from peft import PeftModel

_PICKLED = ("optimizer.pt", "scheduler.pt", "rng_state.pth")
_FILES = {"adapter_model.safetensors", "adapter_config.json", "trainer_state.json", *_PICKLED, MANIFEST}
_LARGEST_STATE = 1 << 28
"""Bytes of trainer_state.json."""


def check_content(commit: Commit, model: "PeftModel") -> None:
    """Raise IntegrityError for a checkpoint that lora_chat would not have written, however well its digests fit.

    Pickles are unpickled as tensors and plain values alone, so that none runs code.
    """
    folder = commit.folder
    names = {path.name for path in folder.iterdir()}
    if odd := sorted(names ^ _FILES):
        word = "lacks" if odd[0] in _FILES else "holds"
        raise _refusal(folder, f"it {word} {odd[0]!a}")
    for name in _PICKLED:
        with _explained(folder, name):
            _check_pickled(folder / name)
    with _explained(folder, "trainer_state.json"):
        _check_state(folder / "trainer_state.json", commit.step)
    with _explained(folder, "adapter_model.safetensors"):
        from safetensors.torch import load_file

        check_weights(load_file(folder / "adapter_model.safetensors"), adapter_weights(model), str(folder))


@contextmanager
def explained_beginning(commit: Commit | None, trainer: Any) -> Iterator[None]:
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
        raise _refusal(commit.folder, f"its content does not fit ({type(error).__name__})") from error


def _check_pickled(path: Path) -> None:
    import torch
    from transformers.trainer_pt_utils import safe_globals

    with zipfile.ZipFile(path) as archive:
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
            raise ValueError("it is compressed")
    with safe_globals():
        found = torch.load(path, map_location="cpu", weights_only=True)
    if not isinstance(found, dict):
        raise ValueError("it holds no table")
    tensors = [tensor for tensor in _values(found) if isinstance(tensor, torch.Tensor)]
    if any(tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes() for tensor in tensors):
        raise ValueError("it repeats values")
    if not all(torch.isfinite(tensor).all() for tensor in tensors if tensor.is_floating_point()):
        raise ValueError("it holds values that are not numbers")


def _values(value: Any) -> Iterator[Any]:
    waiting = [value]
    while waiting:
        one = waiting.pop()
        if isinstance(one, dict):
            waiting += one.values()
        elif isinstance(one, list | tuple):
            waiting += one
        else:
            yield one


def _check_state(path: Path, step: int) -> None:
    if path.stat().st_size > _LARGEST_STATE:
        raise ValueError("it is too large")
    state = parse_json(path.read_text(encoding="utf-8"))
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
def _explained(folder: Path, name: str) -> Iterator[None]:
    try:
        yield
    except LoraChatError:
        raise
    except Exception as error:  # a pickle of a stranger fails in many ways
        raise _refusal(folder, f"{name} is not what training writes ({type(error).__name__})") from error


def _refusal(folder: Path, reason: str) -> IntegrityError:
    return IntegrityError(
        f"The checkpoint {folder} cannot be continued: {reason}.\n"
        "Delete that folder to continue from the one before it, or train again without --resume."
    )
