"""The fields that make two runs the same, so that a checkpoint is not continued as another run."""

from collections.abc import Collection, Mapping, Sequence

from lora_chat.config.base import StrictModel
from lora_chat.config.plan import Plan, TrainingPlan
from lora_chat.config.recipe import AdapterSection, TrainingSection
from lora_chat.errors import IntegrityError, UsageError
from lora_chat.pipeline.parent import Parent, digest_config
from lora_chat.pipeline.prepare import PreparedRun
from lora_chat.pipeline.row_digest import digest_rows

_ACCEPTABLE_CHANGES = {
    "training.epochs",
    "training.max_steps",
    "training.learning_rate",
    "training.min_learning_rate",
    "training.schedule",
    "training.restart_cycles",
    "training.warmup_share",
    "training.warmup_steps",
    "training.weight_decay",
    "training.max_grad_norm",
    "training.micro_batch_size",
    "training.micro_batch_tokens",
    "training.gradient_accumulation_steps",
    "training.gradient_checkpointing",
    "training.fast_path",
    "training.keep",
    "training.early_stopping",
    "evaluation.each_epoch",
    "evaluation.every_steps",
    "precision.device",
}
"""Fields that may change: they affect only later steps, or only rounding."""
_NEWER_SETTINGS: Sequence[tuple[str, type[StrictModel], Sequence[str]]] = (
    ("adapter", AdapterSection, ("bias", "experts", "initialization")),
    ("training", TrainingSection, ("adam_beta2", "label_smoothing", "keep_by")),
    ("training", TrainingPlan, ("keep",)),
)
"""Settings that runs of older versions do not have, so that they had the default. None needs no entry as a default."""
_VERSIONS_PREFIX = "versions."
_BASE_VERSION_FIELD = "base.version"
_OLD_BASE_FIELDS = ("base.weights", "base.tokenizer", "base.chat_template")
"""Fields of the base in a run of an older version."""


def describe_run(
    plan: Plan, prepared: PreparedRun, versions: Mapping[str, str], parent: Parent | None = None
) -> dict[str, object]:
    """Return every field that decides the trained weights, as JSON values. A parent counts by its digests."""
    identity = prepared.identity
    fields: dict[str, object] = {
        "data.rows": digest_rows(prepared.train),
        "base.weights": identity.weights,
        "base.tokenizer": identity.tokenizer,
        "base.chat_template": identity.chat_template,
        _BASE_VERSION_FIELD: identity.version,
        **{f"base.{name}": value for name, value in identity.version_2_parts().items()},
    }
    if identity.kept_tokens:
        fields["data.kept_tokens"] = [*identity.kept_tokens]
    if identity.thinking is not None:
        fields["data.thinking"] = identity.thinking.model_dump()
    for name, section in (("adapter", plan.adapter), ("precision", plan.precision), ("training", plan.training)):
        fields |= {f"{name}.{key}": value for key, value in section.model_dump(mode="json").items()}
    if parent is not None:
        fields = {key: value for key, value in fields.items() if key not in ("adapter.start", "adapter.stack")}
        fields |= {
            "parent.how": parent.record.how,
            "parent.adapter": parent.record.adapter,
            "parent.config": digest_config(parent.settings, identity),
        }
    if plan.training.keep == "best":
        fields |= {f"evaluation.{key}": getattr(plan.evaluation, key) for key in ("each_epoch", "every_steps")}
    del fields["training.memory"]  # the settings that it decided are fields themselves
    del fields["training.cached_layers"]  # copies of weights, which change no result
    del fields["precision.coverage"]  # it follows from the base and the mode
    return fields | {f"{_VERSIONS_PREFIX}{name}": version for name, version in versions.items()}


def is_acceptable_change(field: str) -> bool:
    """Return whether a user can accept that a field changes when a run is resumed."""
    return field in _ACCEPTABLE_CHANGES or field.startswith(_VERSIONS_PREFIX)


def check_same_run(
    committed: Mapping[str, object], now: Mapping[str, object], accepted: Collection[str], where: str
) -> list[str]:
    """Compare the fields of a checkpoint with the present ones, and return the accepted changes as text.

    Raises UsageError if a field of `accepted` may not change, IntegrityError if a change was not accepted.
    """
    for field in accepted:
        if not is_acceptable_change(field):
            raise UsageError(
                f"--accept-change {field}: this change cannot be accepted. "
                f"These can be: {', '.join(sorted(_ACCEPTABLE_CHANGES))}, versions.LIBRARY."
            )
    if is_older_identity(committed):
        now = {field: now[field] for field in now if not field.startswith("base.") or field in _OLD_BASE_FIELDS}
    committed = _add_newer_settings(committed, now)
    # Runs that keep the last step do not record when the validation set is measured.
    unrecorded = {name for name in committed.keys() ^ now.keys() if name.startswith("evaluation.")}
    committed, now = ({name: fields[name] for name in fields.keys() - unrecorded} for fields in (committed, now))
    changed = [field for field in sorted(committed.keys() | now.keys()) if committed.get(field) != now.get(field)]
    refused = [field for field in changed if field not in accepted]
    if refused:
        raise IntegrityError(_format_refusal(committed, now, refused, where))
    return [f"{field}: {committed.get(field)} -> {now.get(field)}" for field in changed]


def _add_newer_settings(committed: Mapping[str, object], now: Mapping[str, object]) -> Mapping[str, object]:
    """Return the fields of a checkpoint with the defaults of settings that are newer than the checkpoint."""
    defaults = {
        f"{section}.{key}": model.model_fields[key].get_default()
        for section, model, names in _NEWER_SETTINGS
        for key in names
    }
    return {field: value for field, value in defaults.items() if field in now} | dict(committed)


def is_older_identity(committed: Mapping[str, object]) -> bool:
    """Return whether an older version wrote these fields; it recorded fewer fields of the base."""
    return _BASE_VERSION_FIELD not in committed


def _format_refusal(committed: Mapping[str, object], now: Mapping[str, object], refused: list[str], where: str) -> str:
    """Format the changed fields and the way to continue."""
    lines = [f"{where} is another run:"]
    lines += [
        f"  {field}: it was {_shorten_digest(committed.get(field))}, now it is {_shorten_digest(now.get(field))}"
        for field in refused
    ]
    acceptable = [field for field in refused if is_acceptable_change(field)]
    if len(acceptable) == len(refused):
        flags = " ".join(f"--accept-change {field}" for field in acceptable)
        lines.append(f"Fix: restore the old values, or continue with the changes: {flags}")
    else:
        lines.append("Fix: restore the old values, or start a new run without --resume.")
    return "\n".join(lines)


def _shorten_digest(value: object) -> str:
    """Return the first 12 characters of a SHA-256; any other value as text."""
    text = str(value)
    return text[:12] + "..." if len(text) == 64 else text
