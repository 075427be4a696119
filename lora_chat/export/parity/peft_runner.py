"""Run parity samples through an adapter folder in PEFT, in a process without lora_chat."""

import json
import logging
import tempfile
from collections.abc import Collection, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from lora_chat.config.limits import PARITY_MAX_NEW_TOKENS
from lora_chat.config.plan import PrecisionPlan
from lora_chat.errors import IntegrityError, OutOfMemoryError
from lora_chat.export.parity.outputs import ParityRunner
from lora_chat.export.parity.samples import ParitySample
from lora_chat.models.auto_class import find_auto_class
from lora_chat.models.base_model import LocalBase, load_meta_model, read_config
from lora_chat.models.quantization.quantized_base import list_skipped_layers
from lora_chat.system.gpu_memory import release_gpu_memory
from lora_chat.system.hardware import has_cpu_bfloat16
from lora_chat.system.worker import WorkerResult, run_worker, worker_timeout_seconds

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)

_WORKER = Path(__file__).with_name("peft_worker.py")
_FIX = "end other programs that use the memory."


class PeftRunner(ParityRunner):
    """An adapter whose outputs are all computed in one process at the beginning; the methods look them up.

    The process uses the device of training, or the CPU if the GPU is too small for it. With `num_rows`, it gives the
    embedding of the base this many rows at least, as a user of an adapter with new tokens must.
    """

    def __init__(
        self,
        adapter: Path,
        base: LocalBase,
        precision: PrecisionPlan,
        samples: Sequence[ParitySample],
        stop_ids: Collection[int],
        pad_id: int,
        num_rows: int | None = None,
    ) -> None:
        self._number = {sample.ids: number for number, sample in enumerate(samples)}
        self._folder = tempfile.TemporaryDirectory(prefix="lora-chat-")
        folder = Path(self._folder.name)
        request = {
            "adapter": str(adapter.absolute()),
            "base": str(base.folder.absolute()),
            "mode": precision.mode,
            "double_quantization": precision.double_quantization,
            "stored": precision.stored.method if precision.stored else None,
            "auto_class": find_auto_class(read_config(base), base.name).__name__,
            "unquantized": list_skipped_layers(load_meta_model(base)) if precision.mode != "none" else [],
            "stop_ids": sorted(stop_ids),
            "most": PARITY_MAX_NEW_TOKENS,
            "pad": pad_id,
            "rows": num_rows,
            "probes": [{"ids": s.ids, "places": s.positions, "prompt": s.prompt} for s in samples],
        }
        release_gpu_memory()  # the worker needs the memory of the adapted model
        timeout = worker_timeout_seconds(base.folder)
        done = _ask_worker(folder, {**request, **_device_fields(precision)}, timeout)
        if done.exit_code == OutOfMemoryError.exit_code and precision.device != "cpu":
            logger.info("The GPU is too small for PEFT, so the outputs are computed on the CPU.")
            done = _ask_worker(folder, {**request, **_cpu_fields(precision)}, timeout)
        if done.exit_code == OutOfMemoryError.exit_code:
            raise OutOfMemoryError("Out of memory while PEFT computed the outputs of the adapter.", _FIX)
        if done.exit_code or not (folder / "answer.json").is_file():
            raise IntegrityError(
                f"PEFT cannot open the adapter (exit {done.exit_code}). Its last lines:\n{done.stderr_tail()}"
            )
        self._replies: list[list[int]] = json.loads((folder / "answer.json").read_text(encoding="utf-8"))["replies"]

    @property
    def name(self) -> str:
        """Return the name and version of PEFT."""
        return f"PEFT {metadata.version('peft')}"

    def logits(self, ids: Sequence[int], positions: Sequence[int]) -> "torch.Tensor":
        """Return the (positions, vocabulary) logits that the worker wrote."""
        from safetensors.torch import load_file

        path = Path(self._folder.name) / f"logits-{self._number[tuple(ids)]}.safetensors"
        return load_file(path)["logits"]

    def replies(
        self, prompts: Sequence[Sequence[int]], stop_ids: Collection[int], max_new_tokens: int
    ) -> list[list[int]]:
        """Return the greedy replies that the worker generated."""
        return self._replies

    def mismatches(self, samples: Sequence[ParitySample], stop_ids: Collection[int]) -> list[str]:
        """Return nothing, because an adapter has no tokenizer: chat template and stop tokens come from the base."""
        return []


def _ask_worker(folder: Path, request: Mapping[str, object], timeout: float) -> WorkerResult:
    """Run a request in the worker; its files are in `folder`."""
    (folder / "request.json").write_text(json.dumps(request), encoding="utf-8")
    return run_worker(_WORKER, [str(folder)], timeout=timeout)


def _device_fields(precision: PrecisionPlan) -> dict[str, str]:
    """Return the fields of a request for the device of training; a process has at most one GPU."""
    return {"device": "cuda:0" if precision.device == "cuda" else precision.device, "dtype": precision.dtype}


def _cpu_fields(precision: PrecisionPlan) -> dict[str, str]:
    """Return the fields of a request for the CPU, in fp32 unless the CPU multiplies in the dtype of training."""
    native = precision.dtype == "bfloat16" and has_cpu_bfloat16()
    return {"device": "cpu", "dtype": precision.dtype if native else "float32"}
