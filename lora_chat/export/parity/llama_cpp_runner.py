"""Run parity samples through a GGUF in llama.cpp."""

import importlib.util
import json
import tempfile
from collections.abc import Collection, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

from lora_chat.config.limits import PARITY_MAX_NEW_TOKENS
from lora_chat.errors import IntegrityError, MissingPackageError
from lora_chat.export.parity.outputs import ParityRunner
from lora_chat.export.parity.samples import ParitySample
from lora_chat.system.worker import run_worker, worker_timeout_seconds

if TYPE_CHECKING:
    import torch

_PACKAGE = "llama-cpp-python"


class LlamaCppAnswer(TypedDict, total=False):
    """The answer of the worker; which keys it has depends on the request."""

    replies: list[list[int]]
    prompts: list[list[int] | None]
    """Ids of each prompt under the chat template of the file; None for plain text."""
    ends: list[int]
    """Tokens at which llama.cpp ends a reply."""
    beginning: str
    """Text that llama.cpp puts before every text."""


def check_llama_cpp() -> None:
    """Raise MissingPackageError unless llama.cpp is installed."""
    if importlib.util.find_spec("llama_cpp") is None:
        raise MissingPackageError(
            "Package not installed: llama-cpp-python (quantizes and checks GGUF files). "
            "Fix: make install-gguf, or pip install 'lora-chat[gguf]' (compiles for some minutes)."
        )


def run_llama_cpp(request: Mapping[str, object], folder: Path) -> LlamaCppAnswer:
    """Run a request, whose paths are absolute, in the worker; its files are in `folder`.

    Raises IntegrityError with the last lines of llama.cpp's output.
    """
    check_llama_cpp()
    (folder / "request.json").write_text(json.dumps(request), encoding="utf-8")
    files = [Path(str(request[name])) for name in ("from", "model", "lora") if request.get(name)]
    done = run_worker(
        "lora_chat.export.parity.llama_cpp_worker", [str(folder.absolute())], timeout=worker_timeout_seconds(*files)
    )
    answer_file = folder / "answer.json"
    if done.exit_code or not answer_file.is_file():
        raise IntegrityError(f"llama.cpp failed (exit {done.exit_code}). Its last lines:\n{done.stderr_tail()}")
    answer: LlamaCppAnswer = json.loads(answer_file.read_text(encoding="utf-8"))
    return answer


class LlamaCppRunner(ParityRunner):
    """A GGUF whose outputs are all computed in one process at the beginning; the methods look them up."""

    def __init__(
        self, model: Path, lora: Path | None, samples: Sequence[ParitySample], stop_ids: Collection[int]
    ) -> None:
        self._number = {sample.ids: number for number, sample in enumerate(samples)}
        self._folder = tempfile.TemporaryDirectory(prefix="lora-chat-")
        self._answer = run_llama_cpp(
            {
                "do": "ask",
                "model": str(model.absolute()),
                "lora": str(lora.absolute()) if lora else None,
                "stop_ids": sorted(stop_ids),
                "most": PARITY_MAX_NEW_TOKENS,
                "probes": [
                    {
                        "ids": sample.ids,
                        "places": sample.positions,
                        "prompt": sample.prompt,
                        "messages": sample.messages,
                        "tools": sample.tools,
                    }
                    for sample in samples
                ],
            },
            Path(self._folder.name),
        )

    @property
    def name(self) -> str:
        """Return the name of llama.cpp's package with its version."""
        return f"llama.cpp ({_PACKAGE} {metadata.version(_PACKAGE)})"

    def logits(self, ids: Sequence[int], positions: Sequence[int]) -> "torch.Tensor":
        """Return the (positions, vocabulary) logits that the worker wrote."""
        import numpy as np
        import torch

        number = self._number[tuple(ids)]
        return torch.from_numpy(np.load(Path(self._folder.name) / f"logits-{number}.npy", allow_pickle=False))

    def replies(
        self, prompts: Sequence[Sequence[int]], stop_ids: Collection[int], max_new_tokens: int
    ) -> list[list[int]]:
        """Return the greedy replies that the worker generated."""
        return self._answer["replies"]

    def mismatches(self, samples: Sequence[ParitySample], stop_ids: Collection[int]) -> list[str]:
        """Describe prompts and stop tokens of the file that differ from training."""
        problems = []
        prompt_pairs = [
            (list(sample.prompt), ids or [])
            for sample, ids in zip(samples, self._answer["prompts"], strict=True)
            if sample.messages
        ]
        differing = [(expected, ids) for expected, ids in prompt_pairs if expected != ids]
        if differing:
            problems.append(
                f"{len(differing)} of {len(prompt_pairs)} prompts have other token ids under its chat template: "
                f"{differing[0][1][:8]}... instead of {differing[0][0][:8]}..."
            )
        if missing := sorted(set(stop_ids) - set(self._answer["ends"])):
            problems.append(f"its replies do not end at the trained stop tokens {missing}")
        return problems
