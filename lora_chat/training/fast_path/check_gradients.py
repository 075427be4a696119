"""Check before training that the fast path gives every LoRA tensor the same gradient as the stock path."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

from lora_chat.models.logits import compute_logits
from lora_chat.training.fast_path.check_packing import make_sample_dialogues, without_dropout
from lora_chat.training.fast_path.fused_lora import fused_lora
from lora_chat.training.fast_path.layers.decoder_layer import fused_layers, recomputed_layers
from lora_chat.training.fast_path.lm_head_loss import SupervisedLMHead, split_supervised
from lora_chat.training.fast_path.packed_batch import EncodedIds, PackedBatchCollator, move_to_device

if TYPE_CHECKING:
    from peft import PeftModel

_NOISE_FACTOR = 3.0
"""Largest error that passes, in multiples of the difference between two attention functions of transformers."""
_MIN_BOUND = {torch.float32: 0.002}
"""Relative error that always passes, for each type of the base."""
_MIN_BOUND_16_BIT = 0.1
_MAX_BOUND = 0.5
"""Relative error that never passes."""
_NEGLIGIBLE_NORM = 0.01
"""Norm of a gradient below which its error is negligible, as a share of the mean norm of its kind of tensor."""
_FILL_SCALE = 0.02
"""Standard deviation of the values in tensors that are zero, because a zero B makes the gradient of A zero."""
_MAX_LONG_TOKENS = {"cpu": 0}
"""Length in tokens to which the long sample is cut. A CPU has none, because it would take seconds, and its attention is
the same on every machine."""
_MAX_LONG_TOKENS_ON_GPU = 2048
_LONG_TARGETS = 128
"""Supervised tokens of the long sample, which are spread over its whole length."""

Gradients = list[torch.Tensor]


@dataclass(frozen=True)
class FastPathParts:
    """A way to compute a training step that is compared with the stock path."""

    collator: PackedBatchCollator | None
    """Collator of packed rows; None pads the rows."""
    head: SupervisedLMHead | None
    fused: bool


@dataclass(frozen=True)
class WrongGradient:
    """The tensor whose gradient differs most from the stock path, relative to what rounding explains."""

    name: str
    error: float
    bound: float

    def __str__(self) -> str:
        return (
            f"gradients differ from the model's ({self.name}: relative error {self.error:.3f}, limit {self.bound:.3f})"
        )


@dataclass(frozen=True)
class _Sample:
    """Dialogues on which gradients are compared, and their gradients on the stock path."""

    rows: Sequence[EncodedIds]
    recomputed: bool
    """Whether activations are recomputed, because the dialogue is long."""
    stock: Gradients = field(default_factory=list)
    noise: list[float] = field(default_factory=list)
    """Relative difference between the gradients of two attention functions of transformers, for each tensor."""


class GradientCheck:
    """Comparison of fast parts with the stock path on a few short dialogues and on a long one."""

    def __init__(
        self, model: "PeftModel", ids: Sequence[int], longest_ids: Sequence[int], stock_attention: str
    ) -> None:
        self._model = model
        self._stock_attention = stock_attention
        named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
        self._names = [name for name, _ in named]
        self._trained = [parameter for _, parameter in named]
        self._samples = [_Sample(make_sample_dialogues(ids), recomputed=False)]
        if long_row := _make_long_row(ids, longest_ids):
            self._samples.append(_Sample([long_row], recomputed=model.device.type != "cpu"))

    def find_wrong_gradient(self, parts: FastPathParts) -> WrongGradient | None:
        """Return the worst gradient of the parts, or None if all are right.

        Weights, gradients and the current attention stay the same.
        """
        with without_dropout(self._model), _filled_zeros(self._trained):
            for sample in self._samples:
                if wrong := self._compare(parts, sample):
                    return wrong
        return None

    def _compare(self, parts: FastPathParts, sample: _Sample) -> WrongGradient | None:
        """Compare one sample. The noise is only measured if an error could be more than rounding."""
        with ExitStack() as stack:
            if sample.recomputed:
                stack.enter_context(recomputed_layers(self._model))
            gradients = self._differentiate(lambda: _fast_loss(self._model, parts, sample.rows), parts)
            if not sample.stock:
                sample.stock.extend(self._stock_gradients(sample.rows, self._stock_attention))
            errors = _relative_errors(gradients, sample.stock, self._names)
            del gradients
            least = _MIN_BOUND.get(self._model.dtype, _MIN_BOUND_16_BIT)
            if all(error <= least for error in errors):
                return None
            if not sample.noise:
                # Rows one at a time instead of padded, because LLM.int8 rounds by the largest value of a batch.
                other = [self._stock_gradients([row], "eager") for row in sample.rows]
                summed = [torch.stack(parts).sum(0) for parts in zip(*other, strict=True)]
                sample.noise.extend(_relative_errors(summed, sample.stock, self._names))
        # The noise of one tensor is a single draw, so the largest of all tensors is the measure.
        bound = min(_MAX_BOUND, max(least, _NOISE_FACTOR * max(sample.noise)))
        # A non-finite error is larger than any other.
        ranked = [float("inf") if error != error else error for error in errors]
        worst = max(range(len(ranked)), key=ranked.__getitem__)
        if ranked[worst] <= bound:
            return None
        return WrongGradient(self._names[worst].removeprefix("base_model.model."), errors[worst], bound)

    def _stock_gradients(self, rows: Sequence[EncodedIds], attention: str) -> Gradients:
        """Return the gradients of padded rows with the model's own layers and an attention function."""
        own_attention = self._model.config._attn_implementation
        self._model.set_attn_implementation(attention)
        try:
            return self._differentiate(lambda: _padded_loss(self._model, rows), None)
        finally:
            self._model.set_attn_implementation(own_attention)

    def _differentiate(self, compute_loss: Callable[[], torch.Tensor], parts: FastPathParts | None) -> Gradients:
        """Return the gradients of a loss in fp32, with zeros for tensors without one."""
        with ExitStack() as stack:
            if parts and parts.fused:
                stack.enter_context(fused_lora(self._model))
                stack.enter_context(fused_layers(self._model))
            gradients = torch.autograd.grad(compute_loss(), self._trained, allow_unused=True)
        pairs = zip(gradients, self._trained, strict=True)
        return [torch.zeros_like(p, dtype=torch.float32) if g is None else g.float() for g, p in pairs]


def _fast_loss(model: "PeftModel", parts: FastPathParts, rows: Sequence[EncodedIds]) -> torch.Tensor:
    """Return the summed cross entropy of the parts, as the trainer computes it."""
    if parts.collator is None:
        return _padded_loss(model, rows)
    batch = move_to_device(parts.collator(rows), model.device)
    if parts.head is not None:
        return parts.head.loss(batch, 1)
    positions, ids, inputs = split_supervised(batch)
    logits = compute_logits(model, positions, **inputs)
    return torch.nn.functional.cross_entropy(logits[0].float(), ids, reduction="sum")


def _padded_loss(model: "PeftModel", rows: Sequence[EncodedIds]) -> torch.Tensor:
    """Return the summed cross entropy of rows that are padded on the right, which a causal model does not see.

    Only the logits of positions that are supervised in some row are computed.
    """
    longest = max(len(row["input_ids"]) for row in rows)
    ids = torch.tensor([row["input_ids"] + row["input_ids"][:1] * (longest - len(row["input_ids"])) for row in rows])
    labels = torch.tensor([row["labels"][1:] + [-100] * (longest + 1 - len(row["labels"])) for row in rows])
    positions = (labels != -100).any(0).nonzero().squeeze(1)
    ids, labels, positions = (tensor.to(model.device) for tensor in (ids, labels[:, positions], positions))
    logits = compute_logits(model, positions, input_ids=ids)
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1).float(), labels.flatten(), reduction="sum")


def cut_long_sample(ids: Sequence[int], device: torch.device) -> Sequence[int]:
    """Cut the longest dialogue to the length that is compared on a device; it is empty for none."""
    return ids[: _MAX_LONG_TOKENS.get(device.type, _MAX_LONG_TOKENS_ON_GPU)]


def _make_long_row(ids: Sequence[int], longest_ids: Sequence[int]) -> EncodedIds | None:
    """Make a dialogue with targets over its whole length; None if it is not longer than the short samples."""
    row = list(longest_ids)
    if len(row) <= max(len(sample["input_ids"]) for sample in make_sample_dialogues(ids)):
        return None
    step = max(1, len(row) // _LONG_TARGETS)
    last = len(row) - 1
    return {"input_ids": row, "labels": [t if i and (last - i) % step == 0 else -100 for i, t in enumerate(row)]}


def _relative_errors(actual: Gradients, expected: Gradients, names: Sequence[str]) -> list[float]:
    """Return the norm of each difference, relative to the norm of the expected gradient.

    A norm far below the mean of its kind of tensor (lora_A, lora_B) counts as if it were larger.
    """
    differences = torch.stack(torch._foreach_norm(torch._foreach_sub(actual, expected))).tolist()
    norms = torch.stack(torch._foreach_norm(expected)).tolist()
    # A module or rows that are trained beside LoRA are a kind of their own.
    kinds = [next((part for part in name.split(".") if part.startswith("lora_")), name) for name in names]
    means = {k: sum(n for n, own in zip(norms, kinds, strict=True) if own == k) / kinds.count(k) for k in set(kinds)}
    least = [_NEGLIGIBLE_NORM * means[kind] for kind in kinds]
    return [d / max(n, m, 1e-30) for d, n, m in zip(differences, norms, least, strict=True)]


@contextmanager
def _filled_zeros(parameters: Sequence[torch.nn.Parameter]) -> Iterator[None]:
    """Give small random values to the tensors that are zero, until the block ends; a trained B keeps its values."""
    norms = torch.stack([norm.float() for norm in torch._foreach_norm([p.detach() for p in parameters])]).tolist()
    zeros = [p for p, norm in zip(parameters, norms, strict=True) if norm == 0]
    originals = [p.detach().clone() for p in zeros]
    generator = torch.Generator().manual_seed(0)
    try:
        with torch.no_grad():
            for parameter in zeros:
                parameter.copy_(torch.randn(parameter.shape, generator=generator).mul_(_FILL_SCALE))
        yield
    finally:
        with torch.no_grad():
            for parameter, original in zip(zeros, originals, strict=True):
                parameter.copy_(original)
