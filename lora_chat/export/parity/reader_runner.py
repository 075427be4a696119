"""Run parity samples through a merged folder in another Python environment, such as one with Transformers 4."""

import json
import shutil
import tempfile
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_chat.config.limits import PARITY_MAX_NEW_TOKENS
from lora_chat.config.plan import PrecisionPlan
from lora_chat.data.encoding.control_tokens import read_control_tokens
from lora_chat.errors import IntegrityError, UnavailableError, UsageError
from lora_chat.export.parity.outputs import ParityRunner
from lora_chat.export.parity.samples import ParitySample
from lora_chat.models.base_model import TOKENIZER_SAMPLE_TEXT
from lora_chat.system.hardware import has_cpu_bfloat16
from lora_chat.system.sanitize import sanitize_line, sanitize_lines
from lora_chat.system.user_path import expand_user_path
from lora_chat.system.worker import WorkerResult, run_worker, worker_timeout_seconds

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

_WORKER = Path(__file__).with_name("reader_worker.py")
_VERSIONS_TIMEOUT_SECONDS = 300
_INTERPRETERS_IN_FOLDER = ("bin/python", "Scripts/python.exe")


@dataclass(frozen=True)
class Reader:
    """A Python with Transformers that can read merged folders."""

    python: Path
    name: str
    """Name of the reader with its versions, for reports."""


def find_reader(python: str) -> Reader:
    """Return a Python, given by its path, its name or the folder of its environment, with its versions.

    Raises UsageError if it does not run, UnavailableError if it lacks a package.
    """
    path = _find_interpreter(python)
    with tempfile.TemporaryDirectory(prefix="lora-chat-") as name:
        result = _ask_worker(path, Path(name), {}, _VERSIONS_TIMEOUT_SECONDS)
        answer = _read_answer(Path(name))
    if result.exit_code or answer is None:
        raise UnavailableError(
            f"--check-with {sanitize_line(python)} cannot import Transformers (exit {result.exit_code}). "
            f"Its last lines:\n{sanitize_lines(result.stderr_tail(3))}\n"
            "Fix: install transformers, torch and safetensors there, or name another Python."
        )
    versions = {key: sanitize_line(str(answer.get(key)), 30) for key in ("transformers", "python", "torch")}
    return Reader(
        path, f"transformers {versions['transformers']} (Python {versions['python']}, torch {versions['torch']})"
    )


def _find_interpreter(python: str) -> Path:
    """Return the path of an interpreter. Links are not followed, because the name decides about its environment."""
    path = expand_user_path(python, "--check-with: ")
    if path.is_dir():
        path = next((path / name for name in _INTERPRETERS_IN_FOLDER if (path / name).is_file()), path)
    elif len(path.parts) == 1 and not path.exists():
        path = Path(shutil.which(python) or python)
    if not path.is_file() or shutil.which(str(path.absolute())) is None:
        raise UsageError(
            f"No Python to run: --check-with {sanitize_line(python)}. "
            "Fix: name the Python of another environment, such as ENV/bin/python."
        )
    return path.absolute()


class ReaderRunner(ParityRunner):
    """A merged folder whose outputs are all computed on the CPU in one process; the methods look them up."""

    def __init__(
        self,
        reader: Reader,
        model: Path,
        precision: PrecisionPlan,
        samples: Sequence[ParitySample],
        stop_ids: Collection[int],
        tokenizer: "PreTrainedTokenizerBase",
    ) -> None:
        self._reader, self._tokenizer = reader, tokenizer
        self._number = {sample.ids: number for number, sample in enumerate(samples)}
        self._folder = tempfile.TemporaryDirectory(prefix="lora-chat-")
        is_native = precision.dtype == "bfloat16" and has_cpu_bfloat16()
        request = {
            "model": str(model.absolute()),
            "dtype": precision.dtype if is_native else "float32",
            "stop_ids": sorted(stop_ids),
            "most": PARITY_MAX_NEW_TOKENS,
            "pad": tokenizer.pad_token_id,
            "text": TOKENIZER_SAMPLE_TEXT,
            "probes": [
                {"ids": s.ids, "places": s.positions, "prompt": s.prompt, "messages": s.messages, "tools": s.tools}
                for s in samples
            ],
        }
        result = _ask_worker(reader.python, Path(self._folder.name), request, worker_timeout_seconds(model))
        answer = _read_answer(Path(self._folder.name))
        if result.exit_code or answer is None:
            raise IntegrityError(
                f"Parity check failed: {reader.name} cannot read the merged model (exit {result.exit_code}). "
                f"Its last lines:\n{sanitize_lines(result.stderr_tail())}\n"
                "It was not kept. Fix: use a reader that knows this architecture, or merge without --check-with."
            )
        self._answer = answer

    @property
    def name(self) -> str:
        """Return the name of the reader with its versions."""
        return self._reader.name

    def logits(self, ids: Sequence[int], positions: Sequence[int]) -> "torch.Tensor":
        """Return the (positions, vocabulary) logits that the worker wrote."""
        from safetensors.torch import load_file

        path = Path(self._folder.name) / f"logits-{self._number[tuple(ids)]}.safetensors"
        return load_file(path)["logits"]

    def replies(
        self, prompts: Sequence[Sequence[int]], stop_ids: Collection[int], max_new_tokens: int
    ) -> list[list[int]]:
        """Return the greedy replies that the worker generated."""
        replies: list[list[int]] = self._answer["replies"]
        return replies

    def mismatches(self, samples: Sequence[ParitySample], stop_ids: Collection[int]) -> list[str]:
        """Describe prompts, token ids of a text and stop tokens that differ from training.

        Prompts whose messages contain control tokens are left out: lora_chat encodes these as text, and other programs
        do not.
        """
        problems = []
        names = read_control_tokens(self._tokenizer)
        pairs = [
            (list(sample.prompt), ids)
            for sample, ids in zip(samples, self._answer["prompts"], strict=True)
            if sample.messages and not any(name in json.dumps(sample.messages, ensure_ascii=False) for name in names)
        ]
        differing = [(expected, ids) for expected, ids in pairs if expected != ids]
        if differing:
            problems.append(
                f"{len(differing)} of {len(pairs)} prompts have other token ids under its chat template: "
                f"{differing[0][1][:8]}... instead of {differing[0][0][:8]}..."
            )
        expected_ids = self._tokenizer(TOKENIZER_SAMPLE_TEXT)["input_ids"]
        if self._answer["text_ids"] != expected_ids:
            problems.append(
                f"a text has other token ids: {self._answer['text_ids'][:8]}... instead of {expected_ids[:8]}..."
            )
        ends = self._answer["ends"]
        found_stop_ids = {ends} if isinstance(ends, int) else set(ends or ())
        if found_stop_ids != set(stop_ids):
            problems.append(
                f"its replies end at the tokens {sorted(found_stop_ids)}, but training used {sorted(stop_ids)}"
            )
        return problems


def _ask_worker(python: Path, folder: Path, request: Mapping[str, object], timeout: float) -> WorkerResult:
    """Run a request in another Python; its files are in `folder`."""
    (folder / "request.json").write_text(json.dumps(request), encoding="utf-8")
    try:
        return run_worker(_WORKER, [str(folder)], timeout=timeout, interpreter=python)
    except OSError as error:
        raise UsageError(f"{python} does not run: {error.strerror or error}. Fix: name a Python.") from error


def _read_answer(folder: Path) -> dict[str, Any] | None:
    """Return the answer of the worker; None if it wrote none."""
    path = folder / "answer.json"
    if not path.is_file():
        return None
    answer: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return answer
