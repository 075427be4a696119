"""A GGUF that is open in llama.cpp, asked what a proof asks."""

import importlib.util
import json
import tempfile
from collections.abc import Collection, Sequence
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_chat.config.limits import PARITY_MAX_NEW_TOKENS
from lora_chat.errors import IntegrityError, UnavailableError
from lora_chat.export.parity.outputs import ParityRunner
from lora_chat.export.parity.samples import ParitySample
from lora_chat.system.worker import run_worker, worker_timeout_seconds

if TYPE_CHECKING:
    import torch

_PACKAGE = "llama-cpp-python"


def check_llama_cpp() -> None:
    """Raise UnavailableError where llama.cpp is not installed."""
    if importlib.util.find_spec("llama_cpp") is None:
        raise UnavailableError(
            "GGUF needs llama.cpp, to quantise and to prove what was written.\n"
            "Run `make install-gguf`, or: pip install 'lora-chat[gguf]' (it is compiled, which takes minutes)."
        )


def run_llama_cpp(request: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Have the worker do something with absolute paths; its files stand in `folder`.

    Raises IntegrityError with llama.cpp's last words.
    """
    check_llama_cpp()
    (folder / "request.json").write_text(json.dumps(request), encoding="utf-8")
    files = [Path(request[name]) for name in ("from", "model", "lora") if request.get(name)]
    done = run_worker(
        "lora_chat.export.parity.llama_cpp_worker", [str(folder.absolute())], timeout=worker_timeout_seconds(*files)
    )
    answer = folder / "answer.json"
    if done.exit_code or not answer.is_file():
        raise IntegrityError(f"llama.cpp failed (exit {done.exit_code}). Its last words:\n{done.stderr_tail()}")
    found: dict[str, Any] = json.loads(answer.read_text(encoding="utf-8"))
    return found


class LlamaCppRunner(ParityRunner):
    """Everything is asked at once, in one process; the methods look it up."""

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
        return f"llama.cpp ({_PACKAGE} {metadata.version(_PACKAGE)})"

    def logits(self, ids: Sequence[int], positions: Sequence[int]) -> "torch.Tensor":
        import numpy as np
        import torch

        number = self._number[tuple(ids)]
        return torch.from_numpy(np.load(Path(self._folder.name) / f"logits-{number}.npy", allow_pickle=False))

    def replies(
        self, prompts: Sequence[Sequence[int]], stop_ids: Collection[int], max_new_tokens: int
    ) -> list[list[int]]:
        found: list[list[int]] = self._answer["replies"]
        return found

    def mismatches(self, samples: Sequence[ParitySample], stop_ids: Collection[int]) -> list[str]:
        problems = []
        prompt_pairs = [(p.prompt, ids) for p, ids in zip(samples, self._answer["prompts"], strict=True) if p.messages]
        differing = [(list(meant), ids) for meant, ids in prompt_pairs if list(meant) != ids]
        if differing:
            problems.append(
                f"{len(differing)} of {len(prompt_pairs)} prompts have other token ids under its chat template: "
                f"{differing[0][1][:8]}... for {differing[0][0][:8]}..."
            )
        if missing := sorted(set(stop_ids) - set(self._answer["ends"])):
            problems.append(f"its replies do not end at the trained stop tokens {missing}")
        return problems
