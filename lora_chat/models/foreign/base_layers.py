"""The linear layers of a base, and the shapes of an adapter's matrices for them."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from lora_chat.errors import IntegrityError
from lora_chat.models.base_model import LocalBase, load_meta_model
from lora_chat.models.foreign.peft_settings import MERGE_WITH_PEFT
from lora_chat.models.foreign.tensor_names import LORA_A, LORA_B, MAGNITUDE, TensorName
from lora_chat.models.text_layers import find_text_layers
from lora_chat.system.safetensors_header import TensorHeader
from lora_chat.system.sanitize import sanitize_line

_TOWERS = ("visual", "vision", "audio", "image", "video")
_MAX_SHOWN_CHARACTERS = 200
_OTHER_BASE_FIX = "Fix: name the base that it was trained on with --base."


@dataclass(frozen=True)
class LayerShape:
    """The sizes of an adapter's matrices for one layer."""

    rank: int
    num_outputs: int
    num_inputs: int


@dataclass(frozen=True)
class BaseLayers:
    """The linear layers of a base that can carry LoRA."""

    base: str
    shapes: Mapping[str, tuple[int, int]]
    """Numbers of outputs and inputs by the name of the layer."""
    unsuitable: Mapping[str, str]
    """Reasons why some of these layers cannot carry LoRA, by their names."""
    head: str | None
    """Name of the LM head, which cannot carry LoRA."""
    parameters: tuple[str, ...] = ()
    """Names of the matrices that belong to no linear layer, such as those of experts."""

    def check_shapes(self, name: str, layers: Mapping[str, LayerShape]) -> None:
        """Raise IntegrityError, with the reason, unless all of an adapter's layers are in the base in these sizes."""
        for layer, shape in layers.items():
            expected = self.shapes.get(layer)
            if expected and (shape.num_outputs, shape.num_inputs) != expected:
                raise IntegrityError(
                    f"The adapter {name} does not fit the base {self.base}: {layer} has {shape.num_inputs:,} inputs "
                    f"and {shape.num_outputs:,} outputs in the adapter, and {expected[1]:,} and {expected[0]:,} in the "
                    f"base.\n{_OTHER_BASE_FIX}"
                )
        for layer in sorted(layers.keys() & self.unsuitable.keys()):
            raise IntegrityError(
                f"The adapter {name} cannot be opened, because it has LoRA on {layer}: {self.unsuitable[layer]}.\n"
                "Fix: train an adapter without such layers."
            )
        if unknown := sorted(layers.keys() - self.shapes.keys()):
            shown = sanitize_line(unknown[0], _MAX_SHOWN_CHARACTERS)
            for reason, fix in self._explain_unknown(unknown, shown):
                raise IntegrityError(f"The adapter {name} cannot be opened, because {reason}.\nFix: {fix}.")
            raise IntegrityError(
                f"The adapter {name} does not fit the base {self.base}: {len(unknown):,} of its {len(layers):,} layers "
                f"are not linear layers of the base (the first is {shown}).\n{_OTHER_BASE_FIX}"
            )

    def _explain_unknown(self, unknown: list[str], shown: str) -> Iterator[tuple[str, str]]:
        """Yield the reason and the remedy for layers that cannot carry LoRA here, if they are of a known kind."""
        if self.head in unknown:
            reason = f"it has LoRA on the LM head ({self.head}), which may share the embedding's weights"
            yield reason, MERGE_WITH_PEFT
        if any(part in unknown[0] for part in _TOWERS):
            reason = f"it has LoRA on a tower for pictures or sound ({shown}), which lora_chat leaves out"
            yield reason, "train an adapter of the language model alone"
        if ".experts." in unknown[0]:
            reason = f"it has LoRA on single experts ({shown}), which this version of Transformers keeps in one tensor"
            yield reason, "merge it with the version of Transformers that trained it, and use that folder as a base"


def read_base_layers(base: LocalBase) -> BaseLayers:
    """Return the linear layers of a base, from its config."""
    import torch
    from transformers.pytorch_utils import Conv1D

    model = load_meta_model(base)
    head_module, head = model.get_output_embeddings(), None
    shapes: dict[str, tuple[int, int]] = {}
    parameters: list[str] = []
    for name, module in model.named_modules():
        if module is head_module:
            head = name
        elif isinstance(module, torch.nn.Linear):
            shapes[name] = (module.out_features, module.in_features)
        elif isinstance(module, Conv1D):
            shapes[name] = (int(module.nf), int(module.nx))
        else:
            own = module.named_parameters(recurse=False)
            parameters += [f"{name}.{parameter}" for parameter, weight in own if weight.dim() in (2, 3)]
    return BaseLayers(base.name, shapes, find_text_layers(model).unsuitable, head, tuple(parameters))


def read_ranks(
    name: str, names: Mapping[str, TensorName], headers: Mapping[str, TensorHeader], *, transposed: bool
) -> dict[str, LayerShape]:
    """Return the sizes of an adapter's matrices by the name of the layer.

    Raises IntegrityError for a layer with one matrix, with the same tensor twice, or with shapes that do not belong
    together.
    """
    parts: dict[str, dict[str, tuple[int, ...]]] = {}
    for file_name, tensor in names.items():
        if not tensor.layer:
            continue
        layer = parts.setdefault(tensor.layer, {})
        if tensor.part in layer:
            shown = sanitize_line(f"{tensor.layer}.{tensor.part}", _MAX_SHOWN_CHARACTERS)
            raise IntegrityError(f"The adapter {name} has two tensors for {shown}.")
        shape = headers[file_name].shape
        layer[tensor.part] = shape[::-1] if transposed else shape
    if not names:
        raise IntegrityError(f"The adapter {name} contains no weights.")
    return {layer: _read_layer_shape(name, layer, shapes) for layer, shapes in parts.items()}


def _read_layer_shape(name: str, layer: str, shapes: Mapping[str, tuple[int, ...]]) -> LayerShape:
    """Return the sizes of the matrices of a layer. Raises IntegrityError if they do not belong together."""
    a, b = shapes.get(LORA_A, ()), shapes.get(LORA_B, ())
    if len(a) != 2 or len(b) != 2 or a[0] != b[1] or shapes.get(MAGNITUDE, b[:1]) != b[:1]:
        raise IntegrityError(
            f"The adapter {name}: {sanitize_line(layer, _MAX_SHOWN_CHARACTERS)} does not have two matrices of one rank "
            f"(lora_A is {a or 'missing'}, lora_B is {b or 'missing'}).\nFix: copy or download the adapter again."
        )
    return LayerShape(rank=a[0], num_outputs=b[0], num_inputs=a[1])
