"""Bytes of the decoder layers of any model in its forward and backward pass, from a dry run on the meta device."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import transformers.masking_utils
from transformers.modeling_layers import GradientCheckpointingLayer

from lora_chat.planning.dry_run.autocast import Autocast
from lora_chat.planning.dry_run.kernels import count_groups, fused_attention
from lora_chat.planning.dry_run.live_bytes import LiveBytes
from lora_chat.planning.layer_memory import PassMemory

if TYPE_CHECKING:
    from peft import PeftModel


@dataclass
class _LayerBytes:
    """Bytes of one decoder layer: the saved ones, and further ones at any moment of a pass."""

    start: int
    saved_bytes: int = 0
    forward_peak: int = 0
    backward_start: int = 0
    backward_peak: int = 0


class _LayerRecorder:
    """Records the live bytes at the borders of the decoder layers by hooks; recomputed layers are not entered again."""

    def __init__(self, live: LiveBytes, layers: Sequence[torch.nn.Module]) -> None:
        self._live = live
        self._index = {id(layer): number for number, layer in enumerate(layers)}
        self.layers: dict[int, _LayerBytes] = {}
        self.in_backward = False
        self._current: int | None = None
        self.hooks: list[Any] = []
        for layer in layers:
            self.hooks += [layer.register_forward_pre_hook(self._enter), layer.register_forward_hook(self._leave)]

    def _enter(self, layer: torch.nn.Module, inputs: object) -> None:
        number = self._index[id(layer)]
        if not self.in_backward and number not in self.layers:
            self._live.peak = self._live.now
            self.layers[number] = _LayerBytes(self._live.now)

    def _leave(self, layer: torch.nn.Module, inputs: object, output: object) -> None:
        number = self._index[id(layer)]
        if self.in_backward:
            return
        record = self.layers[number]
        record.saved_bytes = self._live.now - record.start
        record.forward_peak = self._live.peak - self._live.now
        states = output[0] if isinstance(output, tuple) else output
        if isinstance(states, torch.Tensor) and states.requires_grad:
            states.register_hook(lambda gradient: self._begin_backward(number))  # type: ignore[no-untyped-call]

    def begin_backward(self) -> None:
        """Tell that the forward pass has ended."""
        self.in_backward = True

    def _begin_backward(self, number: int) -> None:
        self.end_backward()
        self._live.peak = self._live.now
        self._current = number
        self.layers[number].backward_start = self._live.now

    def end_backward(self) -> None:
        """Close the layer whose gradients were computed last."""
        if self._current is not None:
            record = self.layers[self._current]
            record.backward_peak = self._live.peak - record.backward_start
            self._current = None


@dataclass(frozen=True)
class RecordedPasses:
    """Forward and backward pass of one dry run; a layer's bytes are the mean over all layers of the model."""

    forward: PassMemory
    backward: PassMemory


def record_passes(
    model: "PeftModel", kinds: Sequence[object], tokens: int, autocast: Autocast, *, learns: bool
) -> RecordedPasses:
    """Run forward, and backward if `learns`, on one row of `tokens` in bf16.

    `kinds` are the kinds of all layers of the whole model by number; `model` may have only the first of them. Raises
    whatever an operation raises that needs the values of tensors.
    """
    live = LiveBytes()
    autocast.cache = {}
    with ExitStack() as stack:
        stack.enter_context(_without_values(autocast, learns=learns))
        for tensor in (*model.parameters(), *model.buffers()):
            live.count(tensor)
        recorder = _LayerRecorder(live, find_decoder_layers(model))
        stack.callback(lambda: [hook.remove() for hook in recorder.hooks])
        static = live.now
        ids = torch.empty(1, tokens, dtype=torch.int64, device="meta")
        with live:
            with autocast if learns else torch.no_grad():
                states = _last_states(model, ids)
            autocast.cache = None
            recorder.begin_backward()
            before_backward = live.now
            if learns:
                torch.autograd.backward([states], [torch.ones_like(states)])
            recorder.end_backward()
            del states
    return _summarize(recorder.layers, kinds, static, before_backward)


def _summarize(
    layers: dict[int, _LayerBytes], kinds: Sequence[object], static: int, before_backward: int
) -> RecordedPasses:
    """Extrapolate from recorded layers to all layers of the whole model."""
    by_kind: dict[object, int] = {}
    for number, record in sorted(layers.items(), reverse=True):
        # The caller frees a layer's input after the layer has returned, so its bytes end where the next layer begins.
        if number + 1 in layers or kinds[number] not in by_kind:
            by_kind[kinds[number]] = (
                layers[number + 1].start - record.start if number + 1 in layers else record.saved_bytes
            )
    saved_bytes = sum(by_kind[kind] for kind in kinds) // len(kinds)
    recorded_bytes = sum(record.saved_bytes for record in layers.values())
    rest = max(0, before_backward - static - recorded_bytes)
    return RecordedPasses(
        PassMemory(saved_bytes, rest, max(0, *(record.forward_peak for record in layers.values()))),
        PassMemory(saved_bytes, rest, max(0, *(record.backward_peak for record in layers.values()))),
    )


def find_decoder_layers(model: torch.nn.Module) -> list[torch.nn.Module]:
    """Return the decoder layers of a model, without towers and without layers inside of others."""
    lists = [module for module in model.modules() if isinstance(module, torch.nn.ModuleList) and len(module)]
    decoder = [m for m in lists if all(isinstance(layer, GradientCheckpointingLayer) for layer in m)]
    return list(max(decoder, key=lambda m: sum(p.numel() for p in m.parameters()), default=[]))


def _last_states(model: "PeftModel", ids: torch.Tensor) -> torch.Tensor:
    """Return the input of the LM head; the head itself gets one position only."""
    captured: list[torch.Tensor] = []

    def capture(head: object, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        captured.append(inputs[0])
        return (inputs[0][:, :1].detach(), *inputs[1:])

    hook = model.get_output_embeddings().register_forward_pre_hook(capture)
    try:
        model(input_ids=ids, use_cache=False)
    finally:
        hook.remove()
    return captured[0]


@contextmanager
def _without_values(autocast: Autocast, *, learns: bool) -> Iterator[None]:
    """Replace operations that need the values of tensors, and kernels that the meta device lacks."""
    with ExitStack() as stack:
        for owner, name, value in (
            (torch.nn.functional, "scaled_dot_product_attention", fused_attention),
            (torch, "autocast", autocast.setting),
            (torch, "is_autocast_enabled", lambda *a: learns),  # PEFT asks
            (torch, "histc", count_groups),
            (transformers.masking_utils, "_ignore_causal_mask_sdpa", lambda *a, **k: True),
            (transformers.masking_utils, "find_packed_sequence_indices", lambda *a, **k: None),
        ):
            stack.enter_context(_replaced(owner, name, value))
        yield


@contextmanager
def _replaced(owner: object, name: str, value: object) -> Iterator[None]:
    """Replace an attribute until the block ends."""
    original = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, original)
