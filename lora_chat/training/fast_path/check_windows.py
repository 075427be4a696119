"""Check before training that packed attention hides the same keys as the model's own masks, at the data's lengths.

Short samples do not show a window of thousands of tokens, and long ones take too much time. Transformers builds each
mask from a function of two positions, so the function is recorded in a short forward and called with long positions.
Rows of a model whose masks are made otherwise are padded.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import torch

from lora_chat.config.plan import TrainingPlan
from lora_chat.data.row_lengths import find_largest
from lora_chat.errors import first_line
from lora_chat.models.architectures import find_fused_architecture
from lora_chat.planning.workload import select_largest_rows
from lora_chat.system.memory_limit import is_out_of_memory
from lora_chat.training.fast_path.attention.interface import ATTENTION_NAME
from lora_chat.training.fast_path.check_packing import without_dropout
from lora_chat.training.fast_path.layers.decoder_layer import decoder_layers, sliding_window

if TYPE_CHECKING:
    from collections.abc import Sequence

    from peft import PeftModel

    from lora_chat.data.row_lengths import Numbers

_RECORDER_NAME = "lora_chat_mask_recorder"
_SAMPLE_TOKENS = 8
_NUM_QUERIES = 64
"""Positions of queries whose visible keys are compared, spread evenly up to the last."""
_ROW_POSITION_FIELDS = ("floor_scale",)
"""Fields of attention layers with a length in tokens from which the position in the row changes the result.

Llama 4 scales queries by the position in the whole row, also if the row has several dialogues
(https://github.com/huggingface/transformers/blob/main/src/transformers/models/llama4/modeling_llama4.py).
"""

_MaskFunction = Callable[..., Any]


@dataclass(frozen=True)
class PackedLengths:
    """Lengths of the rows of a training, in tokens."""

    longest_dialogue: int
    """Longest dialogue that is trained or evaluated."""
    longest_row: int
    """Upper bound of all packed rows."""

    @classmethod
    def of_dialogues(cls, dialogues: "Sequence[Sequence[int]]") -> "PackedLengths":
        """Return the lengths of dialogues that all fit into one row."""
        return cls(max(map(len, dialogues)), sum(map(len, dialogues)))

    @classmethod
    def from_plan(cls, lengths: "Numbers", plan: TrainingPlan) -> "PackedLengths":
        """Return the lengths for dialogues that a plan packs."""
        longest = int(lengths.max())
        if plan.micro_batch_tokens:
            return cls(longest, max(longest, min(plan.micro_batch_tokens, int(lengths.sum()))))
        largest = lengths[find_largest(lengths, plan.effective_batch_size)].tolist()
        return cls(longest, sum(largest[i] for i in select_largest_rows(largest, plan, shared_prefix=0)))


def find_wrong_window(model: "PeftModel", ids: "Sequence[int]", lengths: PackedLengths) -> str:
    """Return why packed rows would not compute the model's attention at these lengths; empty if they do."""
    longest, row_tokens = lengths.longest_dialogue, lengths.longest_row
    limits = [getattr(m, name, None) for m in model.modules() for name in _ROW_POSITION_FIELDS]
    if any(isinstance(limit, int | float) and row_tokens >= limit for limit in limits):
        return f"this model's attention depends on the position in a row of {row_tokens:,} tokens"
    if model.config._attn_implementation != ATTENTION_NAME:
        return ""  # packed rows get the model's own masks
    sample = [ids[i % len(ids)] for i in range(longest)]
    try:
        if _keeps_windows(model, sample[:_SAMPLE_TOKENS], longest):
            return ""
        # Some masks are known only up to the length of the forward, for example those with blocks of pictures.
        if longest > _SAMPLE_TOKENS and _keeps_windows(model, sample, longest):
            return ""
    except Exception as error:
        if is_out_of_memory(error):
            raise
        return f"this model's attention masks are unknown ({first_line(error)})"
    return f"packed rows do not keep this model's attention window in dialogues of {longest:,} tokens"


def _keeps_windows(model: "PeftModel", ids: "Sequence[int]", longest: int) -> bool:
    """Return whether packed attention equals the masks that a forward of `ids` makes, in each layer."""
    layers = _record_layers(model, ids)
    fused = {
        layer.self_attn: sliding_window(layer)
        for layer in decoder_layers(model)
        if find_fused_architecture(type(layer).__name__)
    }
    # Layers share a few masks and windows, so each pair is compared once.
    pairs = {
        (mask_function, window)
        for module, mask_function, passed_window in layers
        for window in {passed_window, fused.get(module, passed_window)}
    }
    return all(_hides_same_keys(mask_function, window, longest) for mask_function, window in pairs)


class _MaskRecorder:
    """Attention of Transformers (sdpa) that records the mask function and the window of each layer."""

    def __init__(self) -> None:
        self.layers: list[tuple[torch.nn.Module, _MaskFunction | None, int | None]] = []
        self._functions: list[tuple[torch.Tensor, _MaskFunction]] = []

    def make_mask(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Return the mask of sdpa, and record the function that it is made from."""
        from transformers.masking_utils import sdpa_mask

        mask = cast("torch.Tensor", sdpa_mask(*args, **kwargs | {"allow_is_causal_skip": False}))
        self._functions.append((mask, kwargs["mask_function"]))
        return mask

    def attend(
        self,
        module: torch.nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return the attention of sdpa, and record the layer."""
        from transformers.integrations.sdpa_attention import sdpa_attention_forward

        function = next((function for mask, function in self._functions if mask is attention_mask), None)
        self.layers.append((module, function, kwargs.get("sliding_window")))
        stock: Any = sdpa_attention_forward
        result = stock(module, query, key, value, attention_mask, **kwargs)
        return cast("tuple[torch.Tensor, torch.Tensor | None]", result)


@torch.no_grad()
def _record_layers(
    model: "PeftModel", ids: "Sequence[int]"
) -> list[tuple[torch.nn.Module, _MaskFunction | None, int | None]]:
    """Return each layer that uses packed attention, the function of its own mask, and the window that it passes."""
    recorder = _MaskRecorder()
    with _attention(model, recorder), without_dropout(model):
        model(input_ids=torch.tensor([list(ids)], device=model.device), use_cache=False)
    return recorder.layers


@contextmanager
def _attention(model: "PeftModel", recorder: _MaskRecorder) -> "Iterator[None]":
    """Use the recorder as the model's attention until the block ends."""
    from transformers import AttentionInterface, AttentionMaskInterface

    before = model.config._attn_implementation
    AttentionInterface.register(_RECORDER_NAME, recorder.attend)
    AttentionMaskInterface.register(_RECORDER_NAME, recorder.make_mask)
    try:
        model.set_attn_implementation(_RECORDER_NAME)
        yield
    finally:
        model.set_attn_implementation(before)


def _hides_same_keys(mask_function: _MaskFunction | None, window: int | None, length: int) -> bool:
    """Return whether a mask shows each query of a dialogue the keys that packed attention shows it."""
    if mask_function is None:
        return False
    queries = torch.linspace(0, length - 1, min(length, _NUM_QUERIES), dtype=torch.float64).round().long()[:, None]
    keys = torch.arange(length)[None]
    zero = torch.zeros(1, 1, dtype=torch.long)
    visible = keys <= queries
    if window is not None:
        visible &= queries - keys < window
    try:
        own = mask_function(zero, zero, queries, keys)
    except (IndexError, RuntimeError):  # the mask is known only up to the length of the forward
        return False
    return bool((torch.as_tensor(own).cpu() == visible).all())
