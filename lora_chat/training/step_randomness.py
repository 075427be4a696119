"""All randomness of a training step as a function of seed, optimizer step, dialogue and module.

So neither the division of a step's dialogues over micro-batches or processes nor gradient checkpointing changes it.
"""

import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch

from lora_chat.models.architectures import find_architecture
from lora_chat.models.logits import compute_logits
from lora_chat.training.embedding_noise import add_embedding_noise
from lora_chat.training.fast_path.check_packing import restored_modes
from lora_chat.training.fast_path.fused_lora import replaced_forwards
from lora_chat.training.keyed_dropout import drop, find_dropouts, matches_tokens
from lora_chat.training.token_keys import TokenKeys

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PretrainedConfig

_MAX_SAMPLE_TOKENS = 48
_NOISE_STREAM = 0
_FIRST_DROPOUT_STREAM = 1

ONE_BY_ONE_NOTE = (
    "This base draws random numbers in training that cannot be drawn for each dialogue of a micro-batch (dropout of "
    "attention, for example). Dialogues are computed one by one, so that micro-batches do not change the result."
)

Batch = dict[str, Any]


class UnkeyedDropoutError(Exception):
    """A dropout layer whose values are not those of the tokens in a micro-batch, so that they have no keys."""


class StepRandomness:
    """The random numbers of one training."""

    def __init__(
        self, model: "PeftModel", seed: int, noise_alpha: float | None = None, *, one_by_one: bool = False
    ) -> None:
        self._model = model
        self._dropouts = find_dropouts(model)
        self._seed = seed
        self._noise_alpha = noise_alpha
        self._one_by_one = one_by_one
        """Whether each dialogue is computed alone, with PyTorch's generators seeded by it."""
        self._tokens: TokenKeys | None = None
        """Keys of the current micro-batch; None outside of one."""

    @property
    def is_used(self) -> bool:
        """Return whether training draws any random numbers."""
        return bool(self._dropouts or self._noise_alpha or self._one_by_one)

    @property
    def checksum(self) -> int:
        """Return a checksum of all settings; with equal steps and dialogues the random numbers are equal."""
        layers = [(name, float(layer.p)) for name, layer in self._dropouts.items()]
        return zlib.crc32(repr((self._seed, self._noise_alpha, self._one_by_one, layers)).encode())

    def split(self, batch: Batch) -> list[Batch]:
        """Return a micro-batch as parts that are computed one after the other."""
        return split_dialogues(batch) if self._one_by_one else [batch]

    @contextmanager
    def seeded(self, batch: Mapping[str, Any], step: int) -> Iterator[None]:
        """Draw the random numbers of a part of a micro-batch in an optimizer step until the block ends."""
        if not self.is_used:
            yield
            return
        self._tokens = TokenKeys.of_batch(batch, self._seed, step).to(self._model.device)
        try:
            if not self._one_by_one:
                yield
                return
            device = self._tokens.keys.device
            with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
                torch.manual_seed(int(self._tokens.keys[0, 0]))
                yield
        finally:
            self._tokens = None

    @contextmanager
    def used_in_model(self) -> Iterator[None]:
        """Draw the numbers of dropout and of the noise on the embeddings from the keys until the block ends.

        A layer that a forward pass calls several times drops the same values each time.
        """
        embeddings = self._model.get_base_model().get_input_embeddings()
        handle = embeddings.register_forward_hook(self._add_noise) if self._noise_alpha else None
        names: dict[torch.nn.Module, str] = {layer: name for name, layer in self._dropouts.items()}
        streams = {name: stream for stream, name in enumerate(self._dropouts, _FIRST_DROPOUT_STREAM)}
        try:
            with replaced_forwards(
                list(names), lambda layer: self._make_forward(layer, names[layer], streams[names[layer]])
            ):
                yield
        finally:
            if handle:
                handle.remove()

    def _make_forward(self, layer: Any, name: str, stream: int) -> Callable[[torch.Tensor], torch.Tensor]:
        """Return the forward of a dropout layer; in evaluation it is the layer's own."""
        stock, share, is_lora = layer.forward, float(layer.p), ".lora_dropout." in name

        def forward(values: torch.Tensor) -> torch.Tensor:
            tokens = self._tokens
            if not layer.training or tokens is None:
                return stock(values)  # type: ignore[no-any-return]
            if matches_tokens(values, tokens.keys, is_lora=is_lora):
                return drop(values, tokens.keys, stream, share)
            if not self._one_by_one:
                raise UnkeyedDropoutError(f"{name} has values {tuple(values.shape)}")
            return stock(values)  # type: ignore[no-any-return]

        return forward

    def _add_noise(self, module: torch.nn.Module, args: object, output: torch.Tensor) -> torch.Tensor:
        """Return embeddings (rows, tokens, size) with noise; in evaluation they stay the same."""
        if not module.training or self._tokens is None or self._noise_alpha is None:
            return output
        return add_embedding_noise(output, self._tokens, _NOISE_STREAM, self._noise_alpha)


def split_dialogues(batch: Batch) -> list[Batch]:
    """Return each dialogue of a packed batch, or each row of a padded one without its padding, as a batch."""
    if "packed_cu_seqlens" not in batch:
        lengths = batch["attention_mask"].sum(1).tolist()
        return [
            {name: values[row : row + 1, :length] for name, values in batch.items()}
            for row, length in enumerate(lengths)
        ]
    return [_cut_dialogue(batch, begin, end) for begin, end in pairwise(batch["packed_cu_seqlens"])]


def _cut_dialogue(batch: Batch, begin: int, end: int) -> Batch:
    """Return the dialogue of a packed batch between two positions as a packed batch."""
    supervised = batch["supervised"]
    borders = torch.tensor([0, end - begin], dtype=torch.int32, device=batch["cu_seq_lens_q"].device)
    return {
        **{name: batch[name][:, begin:end] for name in ("input_ids", "labels", "position_ids")},
        "supervised": supervised[(supervised >= begin) & (supervised < end - 1)] - begin,
        "packed_cu_seqlens": (0, end - begin),
        "cu_seq_lens_q": borders,
        "cu_seq_lens_k": borders,
        "max_length_q": end - begin,
        "max_length_k": end - begin,
    }


@torch.no_grad()
def draws_other_numbers(model: "PeftModel", ids: Sequence[int]) -> bool:
    """Return whether the logits of a forward pass in training depend on the state of PyTorch's generators.

    `ids` are the tokens of any dialogue. Layers of dropout draw from the keys here, as in training.
    """
    spec = find_architecture(model.config.model_type)
    if spec.layer_family and not getattr(model.config, spec.attention_dropout[0], 0.0):
        return False
    randomness = StepRandomness(model, 0)
    row = torch.tensor([ids[:_MAX_SAMPLE_TOKENS]], device=model.device)
    positions = torch.arange(row.shape[1], device=model.device)
    gpus = [model.device] if model.device.type == "cuda" else []
    with restored_modes(model), randomness.used_in_model(), torch.random.fork_rng(devices=gpus):
        model.train()

        def run(seed: int) -> tuple[torch.Tensor, bool]:
            """Return the logits, and whether the generators have another state afterwards."""
            torch.manual_seed(seed)
            before = _generator_states(model.device)
            with randomness.seeded({"input_ids": row}, 0):
                logits = compute_logits(model, positions, input_ids=row)
            after = _generator_states(model.device)
            return logits, any(not torch.equal(*pair) for pair in zip(before, after, strict=True))

        try:
            logits, drew = run(0)
            # Two passes may skip the same layers by chance.
            return drew and (_drops_layers(model.config) or not torch.equal(logits, run(1)[0]))
        except UnkeyedDropoutError:
            return True


def _drops_layers(config: "PretrainedConfig") -> bool:
    """Return whether a config names a rate of layers that training skips at random, such as OPT's `layerdrop`."""
    return any("layerdrop" in name and value for name, value in config.to_dict().items())


def _generator_states(device: torch.device) -> list[torch.Tensor]:
    """Return the states of the generators that a model on a device can draw from."""
    states = [torch.get_rng_state()]
    return [*states, torch.cuda.get_rng_state(device)] if device.type == "cuda" else states
