"""Run llama.cpp in a separate process, because a failed assertion in it ends its process.

Only this module imports llama_cpp. The argument is a folder: the worker reads `request.json` and writes its answers
there.
"""

import ctypes
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import llama_cpp
import numpy as np
from llama_cpp.llama_chat_format import Jinja2ChatFormatter

from lora_chat.system.memory_usage import address_space_bytes
from lora_chat.system.process_limits import time_and_memory_limit

if TYPE_CHECKING:
    from numpy.typing import NDArray

Message = dict[str, Any]
"""A chat message or the description of a tool, from JSON."""
_RENDER_TIMEOUT_SECONDS, _RENDER_LIMIT_BYTES = 20.0, 1 << 30
"""Time, in seconds, and memory, in bytes, for rendering one prompt."""


class _GgufModel:
    """One GGUF, optionally with a LoRA, and a context of `length` tokens."""

    def __init__(self, path: str, lora: str | None, length: int) -> None:
        llama_cpp.llama_backend_init()
        loading = llama_cpp.llama_model_default_params()
        loading.use_extra_bufts = False  # weights repacked for AMX crash here with q8_0 (llama.cpp of 0.3.36)
        loading.n_gpu_layers = 0  # a GPU may be too small for the file, and the default is all layers
        self._model = llama_cpp.llama_model_load_from_file(path.encode(), loading)
        if not self._model:
            raise RuntimeError(f"llama.cpp cannot load {path}")
        settings = llama_cpp.llama_context_default_params()
        settings.n_ctx = settings.n_batch = settings.n_ubatch = length
        settings.offload_kqv = settings.op_offload = False
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
        """Clear the KV cache before a new text."""
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self._context), True)

    def compute_logits(
        self, ids: Sequence[int], start_position: int, positions: Sequence[int]
    ) -> "NDArray[np.float32]":
        """Return (positions, vocabulary) logits after some of `ids`, the first of which is at `start_position`."""
        wanted = set(positions)
        self._batch.n_tokens = len(ids)
        for i, token in enumerate(ids):
            self._batch.token[i], self._batch.pos[i] = token, start_position + i
            self._batch.n_seq_id[i], self._batch.seq_id[i][0] = 1, 0
            self._batch.logits[i] = i in wanted
        if code := llama_cpp.llama_decode(self._context, self._batch):
            raise RuntimeError(f"llama.cpp cannot decode (code {code})")
        rows = [llama_cpp.llama_get_logits_ith(self._context, position) for position in positions]
        return np.stack([np.ctypeslib.as_array(row, shape=(self.vocab_size,)).copy() for row in rows])

    def generate(self, prompt: Sequence[int], stop_ids: set[int], max_new_tokens: int) -> list[int]:
        """Generate a greedy reply to a prompt, without the stop token."""
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
        """Return the tokens at which llama.cpp ends a reply."""
        return [i for i in range(self.vocab_size) if llama_cpp.llama_vocab_is_eog(self._vocab, i)]

    def render_prompt_ids(self, messages: list[Message], tools: list[Message]) -> list[int]:
        """Encode a prompt with the chat template of the file, as the programs of llama.cpp do."""
        template = llama_cpp.llama_model_chat_template(self._model, None)
        if template is None:
            raise RuntimeError("the file has no chat template")
        end = self._token_text(llama_cpp.llama_vocab_eos(self._vocab))
        opening = self._token_text(llama_cpp.llama_vocab_bos(self._vocab))
        text = render(template.decode(), messages, tools, opening=opening, end=end)
        # The programs add the BOS token if the file requires it, and remove it from the rendered template.
        return self.tokenize(text.removeprefix(self.bos_text()), bool(self.bos_text()))

    def bos_text(self) -> str:
        """Return the text that llama.cpp puts before every text."""
        adds = llama_cpp.llama_vocab_get_add_bos(self._vocab)
        return self._token_text(llama_cpp.llama_vocab_bos(self._vocab)) if adds else ""

    def tokenize(self, text: str, special: bool) -> list[int]:
        """Encode a text; the text of control tokens becomes control tokens."""
        raw = text.encode()
        buffer = (llama_cpp.llama_token * (len(raw) + 8))()
        count = llama_cpp.llama_tokenize(self._vocab, raw, len(raw), buffer, len(buffer), special, True)
        if count < 0:
            raise RuntimeError("llama.cpp cannot tokenize a prompt")
        return list(buffer[:count])

    def _token_text(self, token: int) -> str:
        """Return the text of a token; empty if the vocabulary has no such token."""
        return llama_cpp.llama_vocab_get_text(self._vocab, token).decode() if token >= 0 else ""


def render(template: str, messages: list[Message], tools: list[Message] | None, *, opening: str, end: str) -> str:
    """Render a prompt with an untrusted template; this process ends if the template exceeds the limits."""
    with time_and_memory_limit(_RENDER_TIMEOUT_SECONDS, _RENDER_LIMIT_BYTES, address_space_bytes()):
        formatter = Jinja2ChatFormatter(template, eos_token=end, bos_token=opening)
        prompt: str = formatter(messages=messages, **({"tools": tools} if tools else {})).prompt
    return prompt


def quantize(request: dict[str, Any]) -> None:
    """Quantize a GGUF in a float type to another type."""
    settings = llama_cpp.llama_model_quantize_default_params()
    settings.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{request['type'].upper()}")
    code = llama_cpp.llama_model_quantize(request["from"].encode(), request["to"].encode(), ctypes.byref(settings))
    if code:
        raise RuntimeError(f"llama.cpp cannot quantize to {request['type']} (code {code})")


def compute_outputs(request: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Compute the logits, replies and prompts of a GGUF."""
    stop_ids = set(request["stop_ids"])
    length = max(max(len(s["ids"]), len(s["prompt"]) + request["most"]) for s in request["probes"])
    model = _GgufModel(request["model"], request["lora"], length)
    replies, prompts = [], []
    for number, sample in enumerate(request["probes"]):
        model.clear_cache()
        np.save(folder / f"logits-{number}.npy", model.compute_logits(sample["ids"], 0, sample["places"]))
        replies.append(model.generate(sample["prompt"], stop_ids, request["most"]))
        prompts.append(model.render_prompt_ids(sample["messages"], sample["tools"]) if sample["messages"] else None)
    return {"replies": replies, "prompts": prompts, "ends": model.end_token_ids()}


def main(folder: Path) -> None:
    """Run the request; the answer file is written last, so that it marks success."""
    request = json.loads((folder / "request.json").read_text(encoding="utf-8"))
    if request["do"] == "quantise":
        quantize(request)
        answer: dict[str, Any] = {}
    elif request["do"] == "describe":
        answer = {"beginning": _GgufModel(request["model"], None, 8).bos_text()}
    else:
        answer = compute_outputs(request, folder)
    (folder / "answer.json").write_text(json.dumps(answer), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
