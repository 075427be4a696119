"""The settings of PEFT's adapter_config.json: which are read, ignored, or refused, and why."""

from collections.abc import Mapping
from dataclasses import dataclass

from lora_chat.errors import IntegrityError
from lora_chat.system.sanitize import sanitize_line

MERGE_WITH_PEFT = "merge it into its base with PEFT (merge_and_unload), and use the merged folder as a base"
SELECTION_FIELDS = (
    "target_modules",
    "exclude_modules",
    "layers_to_transform",
    "layers_pattern",
    "rank_pattern",
    "alpha_pattern",
)
"""Settings that select layers, which are replaced by the names and shapes of the weights."""
KEPT_FIELDS = (
    *("peft_type", "task_type", "r", "lora_alpha", "lora_dropout", "use_rslora", "use_dora"),
    *("bias", "modules_to_save", "trainable_token_indices", "target_parameters", "ensure_weight_tying"),
)
"""Settings that `LoraSettings.from_peft` reads or refuses."""
_IGNORED_FIELDS = {
    *("base_model_name_or_path", "revision", "inference_mode", "peft_version", "auto_mapping", "fan_in_fan_out"),
    *("loftq_config", "eva_config", "corda_config", "lora_ga_config", "qalora_group_size", "runtime_config"),
    *("megatron_config", "megatron_core"),
}
"""Settings of training, of other settings, or that PEFT derives from the model: they do not change the function."""
_HARMLESS_INITS = (True, False, None, "gaussian", "eva", "orthogonal", "mica")
"""Values of `init_lora_weights` that leave the base's weights as they are."""
_UNMERGEABLE_KINDS = {
    *("PROMPT_TUNING", "MULTITASK_PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING", "ADAPTION_PROMPT", "CPT", "CARTRIDGE"),
}
"""Kinds of PEFT that add inputs or states instead of changing weights."""
_OTHER_TASKS = {"SEQ_CLS", "TOKEN_CLS", "QUESTION_ANS", "SEQ_2_SEQ_LM", "FEATURE_EXTRACTION"}


@dataclass(frozen=True)
class RefusedSetting:
    """A setting whose function lora_chat does not compute."""

    field: str
    reason: str
    """Clause after "because"."""
    fix: str = MERGE_WITH_PEFT


REFUSED_SETTINGS = (
    RefusedSetting("use_qalora", "QA-LoRA pools the inputs of each layer"),
    RefusedSetting("lora_bias", "its LoRA matrices have biases"),
    RefusedSetting("layer_replication", "it was trained on a base with repeated layers"),
    RefusedSetting(
        "alora_invocation_tokens",
        "it is active only after certain tokens (activated LoRA)",
        "use it with PEFT, because a merged model cannot switch it",
    ),
    RefusedSetting("arrow_config", "it routes between several adapters (Arrow)", "use it with PEFT"),
    RefusedSetting("use_bdlora", "its matrices are block-diagonal (BD-LoRA)"),
    RefusedSetting("kasa_config", "its updates are scaled by singular values (KaSA)"),
    RefusedSetting("monteclora_config", "its matrices are random variables (MonteCLoRA)"),
)
"""Settings of PEFT that change the function, one row each."""


def check_peft_config(config: Mapping[str, object], name: str, defaults: Mapping[str, object]) -> None:
    """Raise IntegrityError for a kind, task, initialization or setting of PEFT that cannot be opened.

    `defaults` are PEFT's defaults of all settings. Settings that are kept are checked later, in `LoraSettings`.
    """
    _check_kind(config, name)
    refused = {setting.field: setting for setting in REFUSED_SETTINGS}
    for key, value in config.items():
        if key in (*SELECTION_FIELDS, *KEPT_FIELDS, *_IGNORED_FIELDS, "init_lora_weights"):
            continue
        if value in (None, False, [], {}) or value == defaults.get(key):
            continue
        if key in refused:
            raise _refuse(name, f"{refused[key].reason} ({key})", refused[key].fix)
        shown = f"{sanitize_line(key, 100)} = {sanitize_line(ascii(value), 100)}"
        raise _refuse(name, f"its setting {shown} is unknown here and may change the model", MERGE_WITH_PEFT)
    _check_init(config.get("init_lora_weights", True), name)


def _check_kind(config: Mapping[str, object], name: str) -> None:
    """Raise IntegrityError unless an adapter is LoRA for a causal language model."""
    kind, task = config.get("peft_type"), config.get("task_type")
    if kind is None:
        raise IntegrityError(
            f"{name} is not an adapter of PEFT or mlx-lm: its adapter_config.json has no peft_type. "
            "Fix: save it with PEFT (save_pretrained)."
        )
    if kind != "LORA":
        fix = "use it with PEFT, because it has no weights to merge" if kind in _UNMERGEABLE_KINDS else MERGE_WITH_PEFT
        raise _refuse(name, f"it is of the kind {sanitize_line(str(kind), 50)}, and only LoRA is supported", fix)
    if task in _OTHER_TASKS:
        raise _refuse(
            name, f"it was trained for {task}, not to write text (CAUSAL_LM)", "train an adapter for a chat model"
        )


def _check_init(init: object, name: str) -> None:
    """Raise IntegrityError if the weights are corrections to a base that the initialization changed."""
    if init in _HARMLESS_INITS:
        return
    raise _refuse(
        name,
        f"its weights are corrections to a base that its initialization changed before training "
        f"(init_lora_weights = {sanitize_line(str(init), 50)}), so that on the base itself the model would be wrong",
        "save it again as plain LoRA, with save_pretrained(path_initial_model_for_weight_conversion=...) of PEFT; or, "
        "if the changed base was saved, name it with --base and set init_lora_weights to true in adapter_config.json",
    )


def _refuse(name: str, reason: str, fix: str) -> IntegrityError:
    return IntegrityError(f"The adapter {name} cannot be opened, because {reason}.\nFix: {fix}.")


def read_list(config: Mapping[str, object], field: str, name: str, kind: type | tuple[type, ...]) -> object:
    """Return a setting that is a value or a list of values of a kind, or None. Raises IntegrityError."""
    value = config.get(field)
    values = value if isinstance(value, list) else [] if value is None else [value]
    if all(isinstance(entry, kind) and not isinstance(entry, bool) for entry in values):
        return value
    raise IntegrityError(f"The adapter {name}: {field} = {sanitize_line(ascii(value), 100)} is not valid.")
