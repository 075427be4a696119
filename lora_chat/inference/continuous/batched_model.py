"""A model that reads prompts one by one and computes the next tokens of all running requests in one step."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Any

import torch
from transformers import GenerationConfig
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from lora_chat.inference.continuous.row_layers import RowLayers
from lora_chat.inference.continuous.row_products import MAX_ROWS
from lora_chat.inference.continuous.shared_attention import (
    ATTENTION_NAME,
    DecodeStep,
    ReadStep,
    computing,
    make_rest_cache,
    make_step_cache,
    register_shared_attention,
)
from lora_chat.inference.continuous.token_pool import TokenPool, TokenRange
from lora_chat.inference.generation import contiguous_hidden_states, without_base_settings
from lora_chat.models.named_adapters import is_plain_lora, read_vocabulary_size, using_adapter

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class UnbatchableError(Exception):
    """A model whose requests cannot be computed in one step."""


@dataclass(frozen=True)
class DecodeRow:
    """The next step of one request."""

    token: int
    """The last token, whose keys and values are not in the pool yet."""
    position: int
    tokens: TokenRange
    """Range of the request in the pool."""
    adapter: str | None


class BatchedModel:
    """A base with its adapters whose requests share steps."""

    def __init__(self, model: "PreTrainedModel", pad: int, pool: TokenPool) -> None:
        self._pad, self.pool = pad, pool
        self.layers = RowLayers(exact=model.device.type == "cpu")
        self._windows: dict[int, int] = {}
        self._num_layers = 0
        self._plain: dict[str, bool] = {}
        self._configs: list[Any] = []
        register_shared_attention()
        self.refresh(model)

    def refresh(self, model: "PreTrainedModel") -> None:
        """Prepare the layers of a model whose adapters may have changed."""
        adapted: Any = model
        self._model = adapted
        base = adapted.get_base_model() if hasattr(adapted, "get_base_model") else adapted
        self._base: PreTrainedModel = base
        self._plain = {name: is_plain_lora(adapted, name) for name in getattr(adapted, "peft_config", {})}
        modules = [module for module in base.modules() if hasattr(module, "layer_idx") and hasattr(module, "config")]
        self._configs = list({id(module.config): module.config for module in modules}.values())
        self.layers.install(base)

    @property
    def is_on_gpu(self) -> bool:
        """Return whether the model is on a GPU."""
        return bool(self._base.device.type != "cpu")

    @property
    def smallest_window(self) -> int | None:
        """Return the smallest sliding window of a layer in tokens; None if no layer has one."""
        return min(self._windows.values(), default=None)

    @property
    def adapters(self) -> tuple[str | None, ...]:
        """Return the attached adapters, and None for the bare base."""
        return (None, *self._plain)

    def has_adapter(self, name: str | None) -> bool:
        """Return whether an adapter is attached; None is the bare base."""
        return name is None or name in self._plain

    def read(self, prompt: Sequence[int], adapter: str | None, tokens: TokenRange) -> torch.Tensor:
        """Read a prompt as for a single reply, store its keys and values, and return the logits (vocabulary,)."""
        ids = torch.tensor([list(prompt)], device=self._base.device)
        settings = GenerationConfig(do_sample=False, num_beams=1, max_new_tokens=1, use_cache=True)
        settings.pad_token_id = self._pad
        settings.output_logits = settings.return_dict_in_generate = True
        base = self._base
        with (
            torch.inference_mode(),
            using_adapter(self._model, adapter),
            contiguous_hidden_states(base),
            without_base_settings(base),
        ):
            output = base.generate(input_ids=ids, attention_mask=torch.ones_like(ids), generation_config=settings)
        self._store(output.past_key_values, tokens.begin, len(prompt))
        logits: torch.Tensor = output.logits[0][0]
        return self.limit_vocabulary(logits, adapter)

    def _store(self, cache: Any, begin: int, num_tokens: int) -> None:
        """Copy the keys and values of a prompt into the pool. Raise UnbatchableError for another kind of state."""
        layers = getattr(cache, "layers", None)
        if not layers or any(type(layer) not in (DynamicLayer, DynamicSlidingWindowLayer) for layer in layers):
            raise UnbatchableError("its layers keep other states than keys and values")
        if any(layer.keys is None for layer in layers):
            raise UnbatchableError("some of its layers share keys and values")
        self._num_layers = len(layers)
        self._windows = {i: layer.sliding_window for i, layer in enumerate(layers) if layer.is_sliding}
        for index, layer in enumerate(layers):  # a sliding layer keeps only the last tokens
            self.pool.write(index, begin + num_tokens - layer.keys.shape[2], layer.keys, layer.values)

    def read_rest(self, prompt: Sequence[int], adapter: str | None, tokens: TokenRange, start: int) -> torch.Tensor:
        """Read a prompt whose first tokens have their keys and values in the range; return logits (vocabulary,)."""
        device = self._base.device
        attention = self._base.config.get_text_config()._attn_implementation
        step = ReadStep(self.pool, tokens.begin, start, len(prompt), attention)
        ids = torch.tensor([list(prompt[start:])], device=device)
        positions = torch.arange(start, len(prompt), device=device)[None]
        with (
            torch.inference_mode(),
            using_adapter(self._model, adapter),
            contiguous_hidden_states(self._base),
            computing(step),
            _using_shared_attention(self._configs),
        ):
            output = self._base(
                input_ids=ids,
                position_ids=positions,
                past_key_values=make_rest_cache(step, self._num_layers),
                use_cache=True,
                logits_to_keep=1,
            )
        logits: torch.Tensor = output.logits[0, -1].float()
        return self.limit_vocabulary(logits, adapter)

    def limit_vocabulary(self, logits: torch.Tensor, adapter: str | None) -> torch.Tensor:
        """Return logits (vocabulary,) without tokens that only another adapter has."""
        return logits[: read_vocabulary_size(self._model, adapter)]

    def decode(self, rows: Sequence[DecodeRow]) -> torch.Tensor:
        """Return the logits (rows, vocabulary) of the next tokens, in fp32."""
        if len(rows) > MAX_ROWS:
            return torch.cat([self.decode(rows[:MAX_ROWS]), self.decode(rows[MAX_ROWS:])])
        order = sorted(range(len(rows)), key=lambda index: self._group_key(rows[index]))
        parts: list[torch.Tensor] = []
        for is_plain, indices in groupby(order, key=lambda index: self._group_key(rows[index])[0]):
            if is_plain:
                parts.append(self._step([rows[index] for index in indices], mixes=True))
            else:
                for _, same in groupby(indices, key=lambda index: rows[index].adapter):
                    parts.append(self._step([rows[index] for index in same], mixes=False))
        logits = torch.cat(parts) if len(parts) > 1 else parts[0]
        if order == list(range(len(rows))):
            return logits
        return logits[torch.tensor(order, device=logits.device).argsort()]

    def _group_key(self, row: DecodeRow) -> tuple[bool, str]:
        """Return whether a row can be in a step with other adapters, and its adapter."""
        return row.adapter is None or self._plain[row.adapter], row.adapter or ""

    def _step(self, rows: Sequence[DecodeRow], *, mixes: bool) -> torch.Tensor:
        """Compute one step. Unless adapters are mixed, all rows have the same one."""
        device = self._base.device
        positions = torch.tensor([[row.position] for row in rows], device=device)
        begins = torch.tensor([row.tokens.begin for row in rows], device=device)
        step = DecodeStep(
            self.pool,
            [(row.tokens.begin, row.tokens.begin + row.position + 1) for row in rows],
            begins + positions[:, 0],
            attention=self._base.config.get_text_config()._attn_implementation,
            groups=tuple(_group_rows(rows)) if mixes else None,
            windows=self._windows,
        )
        ids = torch.tensor([[row.token] for row in rows], device=device)
        # Parts beside LoRA, such as replaced modules, must be those of the base in a step with several adapters.
        adapter = None if mixes else rows[0].adapter
        needs_switch = not mixes or not all(self._plain.values())
        with torch.inference_mode(), computing(step), _using_shared_attention(self._configs):
            if needs_switch:
                with using_adapter(self._model, adapter):
                    output = self._forward(ids, positions, step)
            else:
                output = self._forward(ids, positions, step)
        return output.float()

    def _forward(self, ids: torch.Tensor, positions: torch.Tensor, step: DecodeStep) -> torch.Tensor:
        """Return the logits (rows, vocabulary)."""
        cache = make_step_cache(step, self._num_layers)
        output = self._base(input_ids=ids, position_ids=positions, past_key_values=cache, use_cache=True)
        logits: torch.Tensor = output.logits[:, -1]
        return logits


@contextmanager
def _using_shared_attention(configs: Sequence[Any]) -> Iterator[None]:
    """Let `shared_attention` compute attention until the block ends."""
    before = [config._attn_implementation for config in configs]
    try:
        for config in configs:
            config._attn_implementation = ATTENTION_NAME
        yield
    finally:
        for config, name in zip(configs, before, strict=True):
            config._attn_implementation = name


def _group_rows(rows: Sequence[DecodeRow]) -> Iterable[tuple[str, int, int]]:
    """Yield each adapter with its first row and the row after its last."""
    begin = 0
    for adapter, same in groupby(rows, key=lambda row: row.adapter):
        end = begin + len(list(same))
        if adapter is not None:
            yield adapter, begin, end
        begin = end
