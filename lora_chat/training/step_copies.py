"""Copies of the trained weights of measured steps on disk, each with the scores of its validation rows."""

import hashlib
import os
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING

from lora_chat.errors import IntegrityError, explain_write_errors
from lora_chat.system.atomic_write import atomic_output_file, fsync_path
from lora_chat.system.hashing import digest_file
from lora_chat.system.regular_files import open_regular_file
from lora_chat.system.safetensors_header import check_safetensors_header
from lora_chat.training.row_scores import RowScores

if TYPE_CHECKING:
    import torch
    from peft import PeftModel

_WEIGHT_PREFIX, _SCORE_PREFIX = "weights.", "scores."
_SCORE_NAMES = ("losses", "hits", "tokens")
_KEEP_LAST = "--resume --set training.keep=last --accept-change training.keep"


class StepCopies:
    """The copies in the folder `candidates` of a run, one file per step."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def write(self, model: "PeftModel", step: int, scores: RowScores) -> str:
        """Write the trained weights, in the type of training, and return the SHA-256 of the file.

        Raise DiskFullError, DiskError or UsageError.
        """
        import torch
        from safetensors.torch import save

        tensors = {f"{_WEIGHT_PREFIX}{name}": p.detach().cpu().contiguous() for name, p in _trained(model).items()}
        tensors |= {f"{_SCORE_PREFIX}{name}": torch.from_numpy(getattr(scores, name)) for name in _SCORE_NAMES}
        content = save(tensors)
        with explain_write_errors(self._folder, "the folder of measured steps"):
            if not self._folder.is_dir():
                self._folder.mkdir(mode=0o700)
                fsync_path(self._folder.parent)
        with atomic_output_file(self._path(step), "a copy of a measured step") as file:
            file.write(content)
        return hashlib.sha256(content).hexdigest()

    def read_scores(self, step: int, digest: str) -> RowScores:
        """Return the scores of a step. Raise IntegrityError if its copy is missing or damaged."""
        tensors = self._read(step, digest)
        losses, hits, tokens = (tensors.get(f"{_SCORE_PREFIX}{name}") for name in _SCORE_NAMES)
        if losses is None or hits is None or tokens is None or not losses.shape == hits.shape == tokens.shape:
            raise self._damaged(step, "it lacks the scores of the validation rows")
        if not bool(losses.isfinite().all()) or losses.dim() != 1:
            raise self._damaged(step, "its scores are not numbers")
        return RowScores(losses.double().numpy(), hits.long().numpy(), tokens.long().numpy())

    def load(self, model: "PeftModel", step: int, digest: str) -> None:
        """Put the weights of a step into the model. Raise IntegrityError if its copy is missing or damaged."""
        import torch

        tensors, trained = self._read(step, digest), _trained(model)
        stored = {
            name.removeprefix(_WEIGHT_PREFIX): t for name, t in tensors.items() if name.startswith(_WEIGHT_PREFIX)
        }
        fits = stored.keys() == trained.keys() and all(
            stored[name].shape == parameter.shape and stored[name].dtype == parameter.dtype
            for name, parameter in trained.items()
        )
        if not fits:
            raise self._damaged(step, "its weights are not those that the run trains")
        if not all(bool(tensor.isfinite().all()) for tensor in stored.values()):
            raise self._damaged(step, "it has non-finite weights")
        with torch.no_grad():
            for name, parameter in trained.items():
                parameter.copy_(stored[name])

    def delete_except(self, steps: Collection[int]) -> None:
        """Delete the copies of all other steps, and nothing else. Raise DiskError or UsageError."""
        if not self._folder.is_dir():
            return
        kept_names = {self._path(step).name for step in steps}
        with explain_write_errors(self._folder, "the folder of measured steps"):
            for path in sorted(self._folder.glob("step-*.safetensors")):
                if path.name not in kept_names:
                    path.unlink()

    def _read(self, step: int, digest: str) -> "dict[str, torch.Tensor]":
        """Return all tensors of a copy whose digest is correct."""
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        path = self._path(step)
        try:
            os.close(open_regular_file(path))
            if digest_file(path) != digest:
                raise self._damaged(step, "it differs from its digest")
            check_safetensors_header(path)
            return load_file(path)
        except FileNotFoundError:
            raise self._damaged(step, "it is missing") from None
        except (OSError, SafetensorError) as error:
            raise self._damaged(step, f"it cannot be read ({type(error).__name__})") from error

    def _path(self, step: int) -> Path:
        return self._folder / f"step-{step}.safetensors"

    def _damaged(self, step: int, reason: str) -> IntegrityError:
        """Return the error for a copy that cannot be used."""
        return IntegrityError(
            f"The copy of step {step} cannot be used: {reason} ({self._path(step)}).\n"
            f"Fix: train again without --resume, or keep the last step in place of the best: {_KEEP_LAST}"
        )


def _trained(model: "PeftModel") -> "dict[str, torch.nn.Parameter]":
    """Return the trained parameters by their names."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
