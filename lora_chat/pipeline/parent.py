"""The parent of a run: the adapter of `adapter.start`, found and checked before its base is opened."""

import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from pydantic import Field

from lora_chat.config.base import StrictModel
from lora_chat.config.recipe import BaseSection
from lora_chat.errors import IntegrityError, LoraChatError, UnavailableError, UsageError
from lora_chat.models.adapter import encode_stored_weights, validate_adapter_config
from lora_chat.models.adapter_config import LoraSettings, StoredAdapter
from lora_chat.models.base_model import find_base, load_tokenizer
from lora_chat.models.foreign.fit import fit_foreign_adapter
from lora_chat.models.foreign.tokenizer_check import check_tokenizer_beside
from lora_chat.models.identity import Identity
from lora_chat.pipeline.open_adapter import FoundAdapter, TrustOptions, find_adapter, find_adapter_base, find_hub_name
from lora_chat.runs.run_folder import RunFolder, is_run_folder
from lora_chat.sharing.collect import collect_data, collect_recipe
from lora_chat.sharing.figures import Sha256Digest
from lora_chat.sharing.lineage import MAX_GENERATIONS, Inheritance, Lineage, ParentReceipt, digest_settings
from lora_chat.sharing.parcel import encode_config
from lora_chat.sharing.receipt import PrecisionReceipt, public_base_name
from lora_chat.system.bounded_files import MEDIUM_FILE_BYTES, read_bytes
from lora_chat.system.sanitize import sanitize_line
from lora_chat.system.user_path import expand_user_path

_Value = TypeVar("_Value")
_UNKNOWN_BASE = "unknown"
"""Name of the base of an adapter that names none."""


class ParentRecord(StrictModel):
    """Everything about a parent that its adapter's files do not have, as a run keeps it in `parent/parent.json`."""

    how: Inheritance
    name: str
    """Public name: that of the run, the parcel or the repository."""
    adapter: Sha256Digest
    """SHA-256 of its weights, encoded as in a parcel."""
    made_by_user: bool
    precision: PrecisionReceipt | None
    """Precision of its base in training; None if unknown."""
    rows: Sha256Digest | None
    held_out: Sha256Digest | None
    settings: Sha256Digest | None
    max_length: int | None
    """Maximum length of its held-out dialogues, in tokens."""
    ancestors: tuple[ParentReceipt, ...] = Field(max_length=MAX_GENERATIONS)


@dataclass(frozen=True)
class Parent:
    """A parent with its checked settings."""

    stored: StoredAdapter
    settings: LoraSettings
    record: ParentRecord
    held_out: RunFolder | None
    """Folder with its held-out data under the names of a run; None if the data is unknown."""

    @property
    def is_merged(self) -> bool:
        """Return whether the parent is merged into the base before training."""
        return self.record.how == "merge_first"

    @property
    def name(self) -> str:
        """Return the name in messages."""
        return sanitize_line(self.stored.name)

    def make_lineage(self, base: Identity) -> Lineage:
        """Return the lineage of a child; `base` is the identity of the parent's base."""
        identity, record = self.stored.identity or base, self.record
        public_base = public_base_name(identity.base)
        entry = ParentReceipt(
            how=record.how,
            name=record.name,
            adapter=record.adapter,
            config=digest_config(self.settings, identity),
            base=public_base,
            revision=identity.revision,
            weights=identity.weights,
            files=identity.files,
            tokenizer=identity.tokenizer,
            chat_template=identity.chat_template,
            mode=record.precision.mode if record.precision else None,
            rows=record.rows,
            held_out=record.held_out,
            settings=record.settings,
        )
        return (entry, *record.ancestors)


def digest_config(settings: LoraSettings, identity: Identity) -> str:
    """Return the SHA-256 of an adapter's config as a parcel has it."""
    config = settings.to_peft_file(public_base_name(identity.base), identity.revision)
    return hashlib.sha256(encode_config(config)).hexdigest()


def find_parent(
    source: str, how: Inheritance, base: BaseSection | None = None, *, exclude: Path | None = None
) -> Parent:
    """Find a run, a parcel or a folder as the parent of a run, and check its settings and weights.

    An adapter of another tool is read by the layers of `base`, or of the base that it names. `exclude` is the folder of
    the run itself. Raises UsageError for a training that is not finished, IntegrityError for
    an adapter that is damaged or that no recipe can continue.
    """
    path = expand_user_path(source, "adapter.start: ")
    if exclude is not None and path.resolve().is_relative_to(exclude.resolve()):
        raise UsageError(f"adapter.start: {source} is the run itself. Fix: name the adapter that the run began with.")
    _refuse_checkpoint(path)
    if not path.exists() and find_hub_name(source) is None:
        raise UsageError(
            f"adapter.start: there is no run, parcel or adapter {sanitize_line(source)}. "
            "Fix: train it first, or name another one with --set adapter.start=RUN."
        )
    files = find_adapter(source, TrustOptions())
    if files.stored.identity is None:
        files = replace(files, stored=_fit_to_base(files.stored, base))
    run = files.run or files.enclosing_run
    if run is not None and not run.result.is_file():
        raise UsageError(
            f"adapter.start: the training of {run.path} is not finished, so its adapter will still change. "
            f"Fix: finish it with sft --resume {run.path}, then start from it."
        )
    try:
        settings = validate_adapter_config(files.stored)
    except IntegrityError as error:
        if files.stored.identity is not None:
            raise
        raise IntegrityError(
            f"{error}\nFix: merge it with lora-chat merge {sanitize_line(source)} --to DIR, and use DIR as base.name."
        ) from error
    identity = files.stored.identity
    if settings.modules_to_save or settings.token_rows or (identity and identity.new_tokens):
        raise IntegrityError(
            f"{files.stored.name} replaces whole modules or rows of tokens, and such an adapter cannot be trained on. "
            f"Fix: merge it with lora-chat merge {source} --to DIR, and use DIR as base.name."
        )
    if how == "start" and (settings.bias != "none" or files.stored.has_biases):
        raise IntegrityError(
            f"{files.stored.name} has biases of the base's layers, and such an adapter cannot be trained on. "
            "Fix: merge it and train a new adapter: --set adapter.stack=merge_first."
        )
    if how == "start" and LoraSettings.from_section(settings.to_section()) != settings:
        raise IntegrityError(
            f"{files.stored.name} has settings that no recipe can express, so its training cannot be continued. "
            "Fix: merge it and train a new adapter: --set adapter.stack=merge_first."
        )
    stored = files.stored
    if not stored.config.get("base_model_name_or_path"):  # adapters of other tools may name no base
        stored = replace(stored, config={**stored.config, "base_model_name_or_path": _UNKNOWN_BASE})
    return Parent(stored, settings, _make_record(files, run, how, source), run)


def _fit_to_base(stored: StoredAdapter, section: BaseSection | None) -> StoredAdapter:
    """Return an adapter of another tool with the names of its base. Raise the errors of both."""
    try:
        base = find_base(section) if section else find_adapter_base(stored, TrustOptions(), untrusted_name=True)
    except UnavailableError as error:
        raise UnavailableError(str(error).replace("--base ", "--set base.name=")) from error
    if stored.folder is not None:
        check_tokenizer_beside(stored.name, stored.folder, base, load_tokenizer(base), force=False)
    return fit_foreign_adapter(stored, base)


def _refuse_checkpoint(path: Path) -> None:
    """Raise UsageError for a checkpoint of a training, which has no identity of its base."""
    run = path.absolute().parent.parent
    if path.absolute().parent.name == "checkpoints" and is_run_folder(run):
        raise UsageError(
            f"adapter.start: {path} is a checkpoint, which is no finished adapter. Fix: start from the run, "
            f"{run}; if it was interrupted, finish it first with sft --resume {run}."
        )


def _make_record(files: FoundAdapter, run: RunFolder | None, how: Inheritance, source: str) -> ParentRecord:
    """Return the record of a found adapter."""
    data, settings, ancestors = None, None, None
    max_length = None
    if files.parcel is not None:
        receipt = files.parcel.receipt
        name, data, ancestors = receipt.name, receipt.data, receipt.lineage
        settings = digest_settings(receipt.recipe)
    elif run is not None:
        name = run.path.resolve().name
        data = _read_if_known(lambda: collect_data(run))
        settings = _read_if_known(lambda: digest_settings(collect_recipe(run, "base")))
        ancestors = read_lineage(run)
        max_length = run.read_plan().data.max_length
    else:
        name = expand_user_path(source).name
    if ancestors is not None and len(ancestors) >= MAX_GENERATIONS:
        raise UsageError(f"adapter.start: {source} has {len(ancestors)} ancestors; at most {MAX_GENERATIONS} are kept.")
    precision = files.trained
    if precision is not None and not isinstance(precision, PrecisionReceipt):
        precision = PrecisionReceipt(
            mode=precision.mode,
            double_quantization=precision.double_quantization,
            dtype=precision.dtype,
            stored=precision.stored,
            coverage=precision.coverage,
        )
    return ParentRecord(
        how=how,
        name=public_base_name(re.sub(r"[^A-Za-z0-9._-]+", "-", name)),
        adapter=digest_weights(files.stored),
        made_by_user=files.made_by_user,
        precision=precision,
        rows=data.rows if data else None,
        held_out=data.held_out if data else None,
        settings=settings,
        max_length=max_length,
        ancestors=ancestors or (),
    )


def digest_weights(stored: StoredAdapter) -> str:
    """Return the SHA-256 of an adapter's weights, encoded as in a parcel."""
    return hashlib.sha256(encode_stored_weights(stored)).hexdigest()


def read_lineage(run: RunFolder) -> Lineage | None:
    """Return the lineage of a run; None if its adapter began new. Raises IntegrityError if the file is damaged."""
    if not run.lineage.exists():
        return None
    try:
        return _LineageFile.model_validate_json(read_bytes(run.lineage, MEDIUM_FILE_BYTES)).lineage
    except ValueError as error:
        raise IntegrityError(f"{run.lineage} is damaged: it is no lineage that `sft` writes.") from error


class _LineageFile(StrictModel):
    """The content of `lineage.json`."""

    lineage: Lineage


def with_made_by_user(parent: Parent, *, made_by_user: bool) -> Parent:
    """Return a parent whose template is trusted only if `made_by_user` is true, too."""
    trusted = parent.record.made_by_user and made_by_user
    return replace(parent, record=parent.record.model_copy(update={"made_by_user": trusted}))


def _read_if_known(read: Callable[[], _Value]) -> _Value | None:
    """Return a value of a run; None if files of it are missing or damaged."""
    try:
        return read()
    except LoraChatError:
        return None
