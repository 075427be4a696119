"""Attach, save and load LoRA weights (arXiv 2106.09685) through PEFT, the only door to it."""

import copy
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_chat.errors import DiskError, IntegrityError, RecipeError
from lora_chat.models.identity import Identity
from lora_chat.planning.recipe import AdapterSection
from lora_chat.writing import folder_written_whole

if TYPE_CHECKING:
    import torch
    from peft import LoraConfig, PeftModel
    from transformers import PreTrainedModel

IDENTITY_NAME = "lora_chat.json"
TEMPLATE_NAME = "chat_template.jinja"
_WEIGHTS, _CONFIG = "adapter_model.safetensors", "adapter_config.json"
_OURS = {"r", "lora_alpha", "lora_dropout", "target_modules", "use_rslora", "use_dora"}
# These say nothing about the function, or are set by PEFT itself.
_IGNORED = {"base_model_name_or_path", "revision", "inference_mode", "task_type", "peft_version", "fan_in_fan_out"}


@dataclass(frozen=True)
class AdapterReport:
    """How much of the model is trained."""

    trainable_parameters: int
    all_parameters: int

    @property
    def share(self) -> float:
        """Trainable share of all parameters, 0 to 1."""
        return self.trainable_parameters / self.all_parameters


def attach_adapter(model: "PreTrainedModel", adapter: AdapterSection, seed: int = 0) -> "PeftModel":
    """Put fresh LoRA layers into a base; PEFT changes the base in place and returns it wrapped.

    Raises RecipeError if a target module does not exist, naming those that do.
    """
    import torch
    from peft import LoraConfig

    targets: str | list[str] = "all-linear"
    if adapter.target_modules != "all-linear":
        targets = list(adapter.target_modules)
        check_targets_exist(model, adapter.target_modules)
    torch.manual_seed(seed)
    config = LoraConfig(
        r=adapter.rank,
        lora_alpha=adapter.alpha,
        lora_dropout=adapter.dropout,
        target_modules=targets,
        use_rslora=adapter.variant == "rslora",
        use_dora=adapter.variant == "dora",
        task_type="CAUSAL_LM",
    )
    return _wrap(model, config)


def _wrap(model: "PreTrainedModel", config: "LoraConfig") -> "PeftModel":
    import warnings

    from peft import get_peft_model

    with warnings.catch_warnings():
        # GPT-2's Conv1D stores weights transposed; PEFT notices and says that it does the right thing.
        warnings.filterwarnings("ignore", message="fan_in_fan_out")
        return get_peft_model(model, config)


def target_candidates(model: "torch.nn.Module") -> tuple[str, ...]:
    """Last names of the layers that can carry LoRA: every linear layer except the LM head."""
    import torch
    from transformers.pytorch_utils import Conv1D

    find_head: Any = getattr(model, "get_output_embeddings", lambda: None)
    head = find_head()
    names = {
        name.split(".")[-1]
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear | Conv1D) and module is not head
    }
    return tuple(sorted(names))


def check_targets_exist(model: "torch.nn.Module", targets: tuple[str, ...]) -> None:
    """Raise RecipeError for target modules that the model does not have."""
    candidates = target_candidates(model)
    unknown = [name for name in targets if name.split(".")[-1] not in candidates]
    if unknown:
        raise RecipeError(
            f"adapter.target_modules: this base has no {', '.join(unknown)}. "
            f"Choose from {', '.join(candidates)}, or `all-linear`."
        )


def count_trainable(skeleton: "PreTrainedModel", adapter: AdapterSection) -> int:
    """Parameters that an adapter trains, from a model without weights, which is changed."""
    return report_adapter(attach_adapter(skeleton, adapter)).trainable_parameters


def report_adapter(model: "PeftModel") -> AdapterReport:
    """Count trainable and all parameters; packed 4-bit weights count as the weights they stand for."""
    trainable, everything = model.get_nb_trainable_parameters()
    return AdapterReport(trainable, everything)


def save_adapter(model: "PeftModel", folder: Path, identity: Identity, chat_template: str, card: str) -> int:
    """Write the adapter in PEFT's layout, whole or not at all; returns its size in bytes.

    Raises SpaceError, DiskError or RecipeError when the folder cannot be written, or holds other values then.
    """
    with folder_written_whole(folder, "the adapter") as beside:
        write_weights(model, beside)
        _check_written(model, beside)
        config = json.loads((beside / _CONFIG).read_text())
        config["base_model_name_or_path"] = identity.base
        config["revision"] = identity.revision
        (beside / _CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
        (beside / IDENTITY_NAME).write_text(identity.model_dump_json(indent=2) + "\n")
        (beside / TEMPLATE_NAME).write_text(chat_template, encoding="utf-8")
        (beside / "README.md").write_text(card, encoding="utf-8")
        size = sum(path.stat().st_size for path in beside.iterdir())
    return size


def write_weights(model: "PeftModel", folder: Path) -> None:
    """An adapter's weights and config as PEFT's save_pretrained writes them, without its empty model card."""
    from peft import get_peft_model_state_dict
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    # "auto" would ask the hub whether the vocabulary was resized; it never is here.
    weights = get_peft_model_state_dict(model, save_embedding_layers=False)
    save_file({name: w.contiguous() for name, w in weights.items()}, folder / _WEIGHTS, metadata={"format": "pt"})
    config = copy.copy(model.peft_config[model.active_adapter])
    config.inference_mode = True
    config.save_pretrained(str(folder))


def _check_written(model: "PeftModel", folder: Path) -> None:
    """Raise DiskError if what was written does not hold the model's weights."""
    from peft import get_peft_model_state_dict
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    meant = get_peft_model_state_dict(model, save_embedding_layers=False)
    try:
        found = load_file(folder / _WEIGHTS)
    except SafetensorError:
        found = {}
    same = meant.keys() == found.keys() and all(found[name].equal(w.detach().cpu()) for name, w in meant.items())
    if not same:
        raise DiskError(
            f"{folder / _WEIGHTS} does not hold what was written to it; it was not kept.\n"
            "The disk or its file system may be failing; go on elsewhere from a copy of the run, with --resume RUN."
        )


def is_adapter(folder: Path) -> bool:
    """Whether a folder looks like an adapter in PEFT's layout."""
    return (folder / _CONFIG).is_file()


def read_identity(folder: Path) -> Identity | None:
    """The identity an adapter was saved with; None for an adapter from another tool."""
    path = folder / IDENTITY_NAME
    if not path.is_file():
        return None
    try:
        return Identity.model_validate_json(path.read_text())
    except ValueError as error:
        raise IntegrityError(f"{path} is damaged: {error}") from error


def read_base_name(folder: Path) -> tuple[str, str | None]:
    """Name and revision of the base that the adapter's config names."""
    config = _read_config(folder)
    name, revision = config.get("base_model_name_or_path"), config.get("revision")
    if not isinstance(name, str) or not name:
        raise IntegrityError(f"{folder / _CONFIG} names no base model.")
    return name, revision if isinstance(revision, str) else None


def load_adapter(model: "PreTrainedModel", folder: Path) -> "PeftModel":
    """Attach a saved adapter after checking its settings, names, shapes and values.

    PEFT itself loads with strict=False: missing keys leave the base as it is, foreign ones may replace
    its weights. Raises IntegrityError naming what is wrong.
    """
    import torch
    from peft import LoraConfig, get_peft_model_state_dict, set_peft_model_state_dict
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    config = _read_config(folder)
    settings = _check_config(config, folder, LoraConfig().to_dict())
    try:
        weights = load_file(folder / _WEIGHTS)
    except (OSError, SafetensorError) as error:
        raise IntegrityError(f"The adapter's weights {folder / _WEIGHTS} cannot be read: {error}") from error
    try:
        wrapped = _wrap(model, LoraConfig(task_type="CAUSAL_LM", **settings))
    except ValueError as error:
        raise IntegrityError(f"The adapter {folder} does not fit this base: {error}") from error
    expected = get_peft_model_state_dict(wrapped, save_embedding_layers=False)
    missing, foreign = sorted(expected.keys() - weights.keys()), sorted(weights.keys() - expected.keys())
    if missing or foreign:
        detail = f"missing {missing[0]}" if missing else f"foreign {foreign[0]}"
        raise IntegrityError(
            f"The adapter {folder} does not fit this base: {len(missing)} weights missing, "
            f"{len(foreign)} foreign ({detail})."
        )
    for name, tensor in weights.items():
        if tensor.shape != expected[name].shape:
            raise IntegrityError(
                f"The adapter {folder} does not fit this base: {name} is {tuple(tensor.shape)}, "
                f"not {tuple(expected[name].shape)}."
            )
        if not torch.isfinite(tensor).all():
            raise IntegrityError(f"The adapter {folder} holds values that are not numbers, in {name}.")
    set_peft_model_state_dict(wrapped, weights)
    # PEFT holds them in fp32; the trained function is that of the file.
    for name, parameter in wrapped.named_parameters():
        saved = weights.get(name.replace(".default", ""))
        if saved is not None:
            parameter.data = parameter.data.to(saved.dtype)
    wrapped.requires_grad_(False)
    return wrapped.eval()


def merge_adapter(model: "PeftModel") -> "PreTrainedModel":
    """Fold the adapter into the weights; refuses values that are not numbers. Never on a live quantised base."""
    return model.merge_and_unload(safe_merge=True)


def _read_config(folder: Path) -> dict[str, Any]:
    try:
        config = json.loads((folder / _CONFIG).read_text())
    except (OSError, ValueError) as error:
        raise IntegrityError(f"{folder / _CONFIG} cannot be read: {error}") from error
    if not isinstance(config, dict):
        raise IntegrityError(f"{folder / _CONFIG} is not an adapter's config.")
    return config


def _check_config(config: dict[str, Any], folder: Path, defaults: dict[str, Any]) -> dict[str, Any]:
    """The handful of settings we know, typed; anything else that is not PEFT's default is refused."""
    where = folder / _CONFIG
    if config.get("peft_type") != "LORA":
        raise IntegrityError(f"{where}: only LoRA adapters can be read, not {config.get('peft_type')}.")
    for key, value in config.items():
        if key in _OURS | _IGNORED | {"peft_type"}:
            continue
        default = defaults.get(key)
        if value != default and value not in (None, [], {}, False):
            raise IntegrityError(f"{where}: {key} = {value!r} is not supported.")
    targets = config.get("target_modules")
    if not (isinstance(targets, list) and targets and all(isinstance(t, str) for t in targets)):
        raise IntegrityError(f"{where}: target_modules must be a list of names.")
    try:
        checked = AdapterSection(
            rank=config["r"],
            alpha=config["lora_alpha"],
            dropout=config.get("lora_dropout", 0.0),
            target_modules=tuple(targets),
        )
    except (KeyError, ValueError) as error:
        raise IntegrityError(f"{where} holds settings out of range: {error}") from error
    return {
        "r": checked.rank,
        "lora_alpha": checked.alpha,
        "lora_dropout": checked.dropout,
        "target_modules": list(checked.target_modules),
        "use_rslora": config.get("use_rslora") is True,
        "use_dora": config.get("use_dora") is True,
    }
