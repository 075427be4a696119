"""llama.cpp in a process of its own: an assertion in it ends that process, not ours. The only door to llama_cpp.

It does what FOLDER/request.json says, where FOLDER is its argument, and writes its answers there.
"""

import ctypes
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np
from llama_cpp.llama_chat_format import Jinja2ChatFormatter

from lora_chat.system.memory_usage import address_space_bytes
from lora_chat.system.process_limits import time_and_memory_limit

_RENDER_TIMEOUT_SECONDS, _RENDER_LIMIT_BYTES = 20.0, 1 << 30
"""Limits for rendering one prompt."""


class _GgufModel:
    """One GGUF, perhaps with a LoRA, and a context of `length` tokens."""

    def __init__(self, path: str, lora: str | None, length: int) -> None:
        llama_cpp.llama_backend_init()
        loading = llama_cpp.llama_model_default_params()
        loading.use_extra_bufts = False  # weights repacked for AMX crash here with q8_0 (llama.cpp of 0.3.36)
        self._model = llama_cpp.llama_model_load_from_file(path.encode(), loading)
        if not self._model:
            raise RuntimeError(f"llama.cpp cannot load {path}")
        settings = llama_cpp.llama_context_default_params()
        settings.n_ctx = settings.n_batch = settings.n_ubatch = length
        settings.n_threads = settings.n_threads_batch = os.cpu_count() or 1
        self._context = llama_cpp.llama_init_from_model(self._model, settings)
        if not self._context:
            raise RuntimeError("llama.cpp cannot make a context")
        if lora:
            adapter = llama_cpp.llama_adapter_lora_init(self._model, lora.encode())
            if not adapter:
                raise RuntimeError(f"llama.cpp cannot load the adapter {lora}")
            adapters = (llama_cpp.llama_adapter_lora_p_ctypes * 1)(adapter)
            if llama_cpp.llama_set_adapters_lora(self._context, adapters, 1, (ctypes.c_float * 1)(1.0)):
                raise RuntimeError(f"llama.cpp cannot use the adapter {lora}")
        self._vocab = llama_cpp.llama_model_get_vocab(self._model)
        self.vocab_size = llama_cpp.llama_vocab_n_tokens(self._vocab)
        self._batch = llama_cpp.llama_batch_init(length, 0, 1)

    def clear_cache(self) -> None:
        """Begin a new text."""
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self._context), True)

    def compute_logits(self, ids: Sequence[int], start_position: int, positions: Sequence[int]) -> Any:
        """(places, vocabulary) logits behind some of `ids`, which stand from `start_position` on."""
        wanted = set(positions)
        self._batch.n_tokens = len(ids)
        for i, token in enumerate(ids):
            self._batch.token[i], self._batch.pos[i] = token, start_position + i
            self._batch.n_seq_id[i], self._batch.seq_id[i][0] = 1, 0
            self._batch.logits[i] = i in wanted
        if code := llama_cpp.llama_decode(self._context, self._batch):
            raise RuntimeError(f"llama.cpp cannot decode (code {code})")
        rows = [llama_cpp.llama_get_logits_ith(self._context, place) for place in positions]
        return np.stack([np.ctypeslib.as_array(row, shape=(self.vocab_size,)).copy() for row in rows])

    def generate(self, prompt: Sequence[int], stop_ids: set[int], max_new_tokens: int) -> list[int]:
        """Greedy tokens behind a prompt."""
        self.clear_cache()
        reply_ids: list[int] = []
        ids: Sequence[int] = prompt
        while len(reply_ids) < max_new_tokens:
            logits = self.compute_logits(ids, len(prompt) + len(reply_ids) - 1 if reply_ids else 0, [len(ids) - 1])
            token = int(logits[0].argmax())
            if token in stop_ids:
                break
            reply_ids.append(token)
            ids = [token]
        return reply_ids

    def end_token_ids(self) -> list[int]:
        """Tokens at which llama.cpp ends a reply."""
        return [i for i in range(self.vocab_size) if llama_cpp.llama_vocab_is_eog(self._vocab, i)]

    def render_prompt_ids(self, messages: Any, tools: Any) -> list[int]:
        """A prompt under the file's own template, as llama.cpp's programs make it."""
        template = llama_cpp.llama_model_chat_template(self._model, None)
        if template is None:
            raise RuntimeError("the file has no chat template")
        end = self._token_text(llama_cpp.llama_vocab_eos(self._vocab))
        opening = self._token_text(llama_cpp.llama_vocab_bos(self._vocab))
        text = render(template.decode(), messages, tools, opening=opening, end=end)
        # They add the beginning of a text themselves where the file says so, and then take the template's own away.
        return self.tokenize(text.removeprefix(self.bos_text()), bool(self.bos_text()))

    def bos_text(self) -> str:
        """What llama.cpp puts in front of every text."""
        adds = llama_cpp.llama_vocab_get_add_bos(self._vocab)
        return self._token_text(llama_cpp.llama_vocab_bos(self._vocab)) if adds else ""

    def tokenize(self, text: str, special: bool) -> list[int]:
        """Ids of a text in which control tokens count."""
        raw = text.encode()
        buffer = (llama_cpp.llama_token * (len(raw) + 8))()
        count = llama_cpp.llama_tokenize(self._vocab, raw, len(raw), buffer, len(buffer), special, True)
        if count < 0:
            raise RuntimeError("llama.cpp cannot tokenize a prompt")
        return list(buffer[:count])

    def _token_text(self, token: int) -> str:
        return llama_cpp.llama_vocab_get_text(self._vocab, token).decode() if token >= 0 else ""


def render(template: str, messages: Any, tools: Any, *, opening: str, end: str) -> str:
    """Return a prompt under a template, which may be a stranger's program: beyond the limits this process ends."""
    with time_and_memory_limit(_RENDER_TIMEOUT_SECONDS, _RENDER_LIMIT_BYTES, address_space_bytes()):
        formatter = Jinja2ChatFormatter(template, eos_token=end, bos_token=opening)
        found: str = formatter(messages=messages, **({"tools": tools} if tools else {})).prompt
    return found


def quantize(request: dict[str, Any]) -> dict[str, Any]:
    """A GGUF in 16 bits -> one of another type."""
    settings = llama_cpp.llama_model_quantize_default_params()
    settings.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{request['type'].upper()}")
    code = llama_cpp.llama_model_quantize(request["from"].encode(), request["to"].encode(), ctypes.byref(settings))
    if code:
        raise RuntimeError(f"llama.cpp cannot quantise to {request['type']} (code {code})")
    return {}


def compute_outputs(request: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Logits, replies and prompts of a GGUF."""
    stop_ids = set(request["stop_ids"])
    length = max(max(len(p["ids"]), len(p["prompt"]) + request["most"]) for p in request["probes"])
    model = _GgufModel(request["model"], request["lora"], length)
    replies, prompts = [], []
    for number, sample in enumerate(request["probes"]):
        model.clear_cache()
        np.save(folder / f"logits-{number}.npy", model.compute_logits(sample["ids"], 0, sample["places"]))
        replies.append(model.generate(sample["prompt"], stop_ids, request["most"]))
        prompts.append(model.render_prompt_ids(sample["messages"], sample["tools"]) if sample["messages"] else None)
    return {"replies": replies, "prompts": prompts, "ends": model.end_token_ids()}


def main(folder: Path) -> None:
    """Do what the request says; the answer is the last thing written."""
    request = json.loads((folder / "request.json").read_text(encoding="utf-8"))
    if request["do"] == "quantise":
        found = quantize(request)
    elif request["do"] == "describe":
        found = {"beginning": _GgufModel(request["model"], None, 8).bos_text()}
    else:
        found = compute_outputs(request, folder)
    (folder / "answer.json").write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
