"""Check of a checkpoint's content before it is resumed, because its digests only prove that it is complete."""

import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from lora_chat.errors import IntegrityError, LoraChatError
from lora_chat.models.adapter import adapter_weights
from lora_chat.models.adapter_checks import check_adapter_weights
from lora_chat.runs.checkpoints import MANIFEST, CommittedCheckpoint
from lora_chat.system.memory_limit import is_out_of_memory
from lora_chat.system.strict_json import parse_strict_json
from lora_chat.training.loss_scale import check_scaler_state

if TYPE_CHECKING:
    from peft import PeftModel
    from trl import SFTTrainer

_PICKLED_FILES = ("optimizer.pt", "scheduler.pt", "rng_state.pth")
_SCALER_FILE = "scaler.pt"
"""File with the state of the gradient scaler, which only fp16 training has."""
_CHECKPOINT_FILES = {
    "adapter_model.safetensors",
    "adapter_config.json",
    "trainer_state.json",
    *_PICKLED_FILES,
    MANIFEST,
}
_MAX_STATE_BYTES = 1 << 28
"""Largest size of trainer_state.json, in bytes."""


def check_checkpoint_content(checkpoint: CommittedCheckpoint, model: "PeftModel", *, has_scaler: bool = False) -> None:
    """Raise IntegrityError for a checkpoint that lora_chat cannot have written, even if its digests match.

    Pickles are read as tensors and plain values only, so that they cannot run code.
    """
    folder = checkpoint.folder
    names = {path.name for path in folder.iterdir()}
    expected = _CHECKPOINT_FILES | ({_SCALER_FILE} if has_scaler else set())
    if unexpected := sorted(names ^ expected):
        verb = "lacks" if unexpected[0] in expected else "contains"
        raise _integrity_error(folder, f"it {verb} {unexpected[0]!a}")
    for name in _PICKLED_FILES:
        with _explain_file_errors(folder, name):
            _check_pickled(folder / name)
    if has_scaler:
        with _explain_file_errors(folder, _SCALER_FILE):
            check_scaler_state(_check_pickled(folder / _SCALER_FILE))
    with _explain_file_errors(folder, "trainer_state.json"):
        _check_trainer_state(folder / "trainer_state.json", checkpoint.step)
    with _explain_file_errors(folder, "adapter_model.safetensors"):
        from safetensors.torch import load_file

        check_adapter_weights(load_file(folder / "adapter_model.safetensors"), adapter_weights(model), str(folder))


@contextmanager
def explain_resume_errors(checkpoint: CommittedCheckpoint | None, trainer: "SFTTrainer") -> Iterator[None]:
    """Raise IntegrityError for an error between opening a checkpoint and the first step."""
    try:
        yield
    except LoraChatError:
        raise
    except Exception as error:
        no_step_done = checkpoint is not None and trainer.state.global_step in (0, checkpoint.step)
        if checkpoint is None or not no_step_done or is_out_of_memory(error) or isinstance(error, OSError):
            raise
        if type(error).__module__.startswith("lora_chat."):  # stops of training, which are not errors
            raise
        raise _integrity_error(checkpoint.folder, f"its content does not fit ({type(error).__name__})") from error


def _check_pickled(path: Path) -> dict[object, object]:
    """Return the content of a file. Raise an error unless it is a table of finite tensors and plain values."""
    import torch
    from transformers.trainer_pt_utils import safe_globals

    with zipfile.ZipFile(path) as archive:
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
            raise ValueError("it is compressed")
    with safe_globals():
        content = torch.load(path, map_location="cpu", weights_only=True)
    if not isinstance(content, dict):
        raise ValueError("its content is not a table")
    tensors = [tensor for tensor in _iterate_leaves(content) if isinstance(tensor, torch.Tensor)]
    # A small file could otherwise claim a huge tensor, because strides of zero repeat one value.
    if any(tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes() for tensor in tensors):
        raise ValueError("it repeats values")
    if not all(torch.isfinite(tensor).all() for tensor in tensors if tensor.is_floating_point()):
        raise ValueError("it contains non-finite values")
    return content


def _iterate_leaves(value: object) -> Iterator[object]:
    """Yield the values of nested tables and lists, without recursion because the nesting is untrusted."""
    stack: list[object] = [value]
    while stack:
        item = stack.pop()
        if isinstance(item, dict):
            stack += item.values()
        elif isinstance(item, list | tuple):
            stack += item
        else:
            yield item


def _check_trainer_state(path: Path, step: int) -> None:
    """Raise an error unless the file is the state that Trainer writes at a step."""
    if path.stat().st_size > _MAX_STATE_BYTES:
        raise ValueError("it is too large")
    state = parse_strict_json(path.read_text(encoding="utf-8"))
    if not isinstance(state, dict) or state.get("global_step") != step:
        raise ValueError(f"it is not the state of step {step}")
    history, callbacks = state["log_history"], state["stateful_callbacks"]
    if not isinstance(history, list) or not all(isinstance(row, dict) for row in history):
        raise ValueError("its history is not a list of rows")
    control = callbacks["TrainerControl"]
    flags = control["args"].values()
    if len(callbacks) != 1 or control["attributes"] or not all(isinstance(flag, bool) for flag in flags):
        raise ValueError("it contains more callbacks than training has")


@contextmanager
def _explain_file_errors(folder: Path, name: str) -> Iterator[None]:
    """Raise IntegrityError for any error of reading a file."""
    try:
        yield
    except LoraChatError:
        raise
    except Exception as error:  # an untrusted pickle can fail in many ways
        raise _integrity_error(folder, f"{name} is not a file that training writes ({type(error).__name__})") from error


def _integrity_error(folder: Path, reason: str) -> IntegrityError:
    """Return the error for a checkpoint that cannot be resumed."""
    return IntegrityError(
        f"The checkpoint {folder} cannot be resumed: {reason}.\n"
        "Fix: delete that folder to continue from the checkpoint before it, or train again without --resume."
    )
