"""Names of the tensors in adapter files of several tools and versions."""

import re
from collections.abc import Iterable
from dataclasses import dataclass

PEFT_PREFIX = "base_model.model."
LORA_A, LORA_B, MAGNITUDE = "lora_A.weight", "lora_B.weight", "lora_magnitude_vector"
"""Last parts of PEFT's names of the tensors of a linear layer."""
_NAME = re.compile(
    r"(?P<layer>.+)\.(?:(?P<matrix>lora_[AB])(?:\.\w+)?\.weight|(?P<vector>lora_magnitude_vector)(?:\.\w+)?)"
)
"""The name of an adapter, such as `default`, can be inside; DoRA's vectors were parameters or modules."""
_MLX_PARTS = {"lora_a": LORA_A, "lora_b": LORA_B, "m": MAGNITUDE}
_TEXT_PREFIXES = ("model.language_model.", "language_model.model.", "model.text_model.", "model.")
"""Names of the text part of models with several parts, which differ between versions of Transformers."""


@dataclass(frozen=True, order=True)
class TensorName:
    """The place of a tensor in a model."""

    layer: str
    """Name of the linear layer in the base; empty for a tensor that belongs to none."""
    part: str
    """Last part of PEFT's name, or the whole name if there is no layer."""

    @property
    def peft_name(self) -> str:
        """Return the name under which PEFT saves the tensor."""
        return f"{PEFT_PREFIX}{self.layer}.{self.part}" if self.layer else self.part


def parse_peft_name(name: str) -> TensorName:
    """Return the layer and part of a tensor's name in a file of PEFT."""
    match = _NAME.fullmatch(name)
    if match is None:
        return TensorName("", name)
    layer = match["layer"].removeprefix(PEFT_PREFIX)
    return TensorName(layer, f"{match['matrix']}.weight" if match["matrix"] else MAGNITUDE)


def parse_bias_name(name: str) -> str:
    """Return the layer of a trained bias of the base."""
    return name.removeprefix(PEFT_PREFIX).removesuffix(".bias").removesuffix(".base_layer")


def parse_mlx_name(name: str) -> TensorName:
    """Return the layer and part of a tensor's name in a file of mlx-lm."""
    layer, _, last = name.rpartition(".")
    return TensorName(layer, _MLX_PARTS[last]) if layer and last in _MLX_PARTS else TensorName("", name)


@dataclass(frozen=True)
class Renaming:
    """A prefix of the names of layers in an adapter, and the prefix in the base."""

    old: str = ""
    new: str = ""

    def to_base(self, layer: str) -> str:
        """Return the name in the base of an adapter's layer."""
        return self.new + layer.removeprefix(self.old) if layer.startswith(self.old) else layer

    def to_adapter(self, layer: str) -> str:
        """Return the name that the adapter's tool has for a layer of the base."""
        return self.old + layer.removeprefix(self.new) if layer.startswith(self.new) else layer


def find_renaming(layers: Iterable[str], base_layers: Iterable[str]) -> Renaming:
    """Return the change of names that makes an adapter's layers those of the base.

    If the base has none of them, the prefix of the text part is replaced by another version's, provided that the base
    then has all of them.
    """
    wanted, existing = set(layers), set(base_layers)
    if wanted & existing:
        return Renaming()
    renamings = (Renaming(old, new) for old in _TEXT_PREFIXES for new in _TEXT_PREFIXES if old != new)
    fitting = (
        r for r in renamings if all(layer.startswith(r.old) and r.to_base(layer) in existing for layer in wanted)
    )
    return next(fitting, Renaming())


def describe_other_tensors(names: Iterable[str]) -> tuple[str, str]:
    """Return what tensors are that belong to no linear layer, as a noun phrase, and the name of the first of them."""
    others = sorted(names)
    for part, description in _OTHER_TENSORS.items():
        if name := next((name for name in others if part in name), None):
            return description, name
    return "weights that are not LoRA", others[0]


_OTHER_TENSORS = {
    "lora_embedding_": "LoRA on the embedding",
    "trainable_tokens": "trained rows of the embedding",
    "lora_B.bias": "biases of LoRA matrices",
    "embed_tokens": "a whole embedding, as after a change of the vocabulary",
    "wte": "a whole embedding, as after a change of the vocabulary",
    "lm_head": "a whole LM head, as after a change of the vocabulary",
    "modules_to_save": "layers that were trained whole",
    ".bias": "trained biases",
    "experts": "weights of experts",
}
"""Parts of names and their meaning, the first match counts."""
