"""A GGUF that is open in llama.cpp, asked what a proof asks."""

import importlib.util
import json
import tempfile
from collections.abc import Collection, Sequence
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_chat.config.limits import PROVEN_TOKENS
from lora_chat.errors import BaseUnavailableError, IntegrityError
from lora_chat.export.parity.outputs import Reader
from lora_chat.export.parity.samples import Probe
from lora_chat.system.worker import run_worker, time_limit

if TYPE_CHECKING:
    import torch

_PACKAGE = "llama-cpp-python"


def check_llama_cpp() -> None:
    """Raise BaseUnavailableError where llama.cpp is not installed."""
    if importlib.util.find_spec("llama_cpp") is None:
        raise BaseUnavailableError(
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
    done = run_worker("lora_chat.export.parity.llama_cpp_worker", [str(folder.absolute())], timeout=time_limit(*files))
    answer = folder / "answer.json"
    if done.exit_code or not answer.is_file():
        raise IntegrityError(f"llama.cpp failed (exit {done.exit_code}). Its last words:\n{done.last_words()}")
    found: dict[str, Any] = json.loads(answer.read_text(encoding="utf-8"))
    return found


class LlamaCppReader(Reader):
    """Everything is asked at once, in one process; the methods look it up."""

    def __init__(self, model: Path, lora: Path | None, probes: Sequence[Probe], stop_ids: Collection[int]) -> None:
        self._number = {probe.ids: number for number, probe in enumerate(probes)}
        self._folder = tempfile.TemporaryDirectory(prefix="lora-chat-")
        self._answer = run_llama_cpp(
            {
                "do": "ask",
                "model": str(model.absolute()),
                "lora": str(lora.absolute()) if lora else None,
                "stop_ids": sorted(stop_ids),
                "most": PROVEN_TOKENS,
                "probes": [
                    {
                        "ids": probe.ids,
                        "places": probe.places,
                        "prompt": probe.prompt,
                        "messages": probe.messages,
                        "tools": probe.tools,
                    }
                    for probe in probes
                ],
            },
            Path(self._folder.name),
        )

    @property
    def name(self) -> str:
        return f"llama.cpp ({_PACKAGE} {metadata.version(_PACKAGE)})"

    def logits(self, ids: Sequence[int], places: Sequence[int]) -> "torch.Tensor":
        import numpy as np
        import torch

        number = self._number[tuple(ids)]
        return torch.from_numpy(np.load(Path(self._folder.name) / f"logits-{number}.npy", allow_pickle=False))

    def replies(self, prompts: Sequence[Sequence[int]], stop_ids: Collection[int], most: int) -> list[list[int]]:
        found: list[list[int]] = self._answer["replies"]
        return found

    def misread(self, probes: Sequence[Probe], stop_ids: Collection[int]) -> list[str]:
        found = []
        asked = [(p.prompt, ids) for p, ids in zip(probes, self._answer["prompts"], strict=True) if p.messages]
        other = [(list(meant), ids) for meant, ids in asked if list(meant) != ids]
        if other:
            found.append(
                f"{len(other)} of {len(asked)} prompts have other token ids under its chat template: "
                f"{other[0][1][:8]}... for {other[0][0][:8]}..."
            )
        if missing := sorted(set(stop_ids) - set(self._answer["ends"])):
            found.append(f"its replies do not end at the trained stop tokens {missing}")
        return found
