"""A run, parcel or folder opened as an adapter with its base and chat template."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from lora_chat.config.lora_variants import check_base_mode
from lora_chat.config.plan import PrecisionPlan, plan_inference_precision
from lora_chat.config.recipe import BaseSection, QuantizationSection
from lora_chat.errors import ConsentError, UnavailableError, UsageError
from lora_chat.models.adapter_config import StoredAdapter
from lora_chat.models.adapter_files import is_adapter_folder, read_adapter
from lora_chat.models.base_model import LocalBase, find_base, is_base_local, load_tokenizer
from lora_chat.models.bound_adapter import BoundAdapter, bind_adapter
from lora_chat.models.bundled import bundled_base_names
from lora_chat.models.foreign.fit import fit_foreign_adapter
from lora_chat.models.foreign.tokenizer_check import check_tokenizer_beside
from lora_chat.models.hub import find_cached_adapter, find_cached_base, find_or_download_adapter, is_adapter_on_hub
from lora_chat.models.other_kinds import explain_other_adapter_folder
from lora_chat.pipeline.base_precision import adopt_base_precision
from lora_chat.pipeline.choose_template import install_trained_template
from lora_chat.pipeline.choose_thinking import install_trained_thinking
from lora_chat.pipeline.install_tokens import install_trained_tokens
from lora_chat.pipeline.missing_base import HUB_ID, explain_missing_base
from lora_chat.runs.origin import find_foreign_reason, sign_run
from lora_chat.runs.run_folder import RunFolder, is_run_folder, open_run_folder
from lora_chat.sharing.parcel import Parcel, is_parcel, open_parcel
from lora_chat.sharing.receipt import PrecisionReceipt
from lora_chat.system.hardware import Hardware, describe_cpu, detect_hardware
from lora_chat.system.hub_client import HubFailureError
from lora_chat.system.sanitize import sanitize_line
from lora_chat.system.user_path import expand_user_path

logger = logging.getLogger(__name__)

_RUNS_FOLDER_NAME = "runs"
"""Default of `output.directory`."""


@dataclass(frozen=True)
class TrustOptions:
    """The user's decisions about base, chat template and signer."""

    base: str | None = None
    """Folder or name of the base; None means the base that the adapter names, if it is on this machine."""
    force_base: bool = False
    accept_template: bool = False
    signer: Path | None = None
    """Public key with which a parcel must be signed."""
    compare_template_only: bool = False
    """Whether the adapter's own template is only compared by its digest and not run."""
    adopt: bool = False
    """Whether to sign runs as this user's own."""
    follow_links: bool = True
    """Whether a parcel may be a symbolic link."""
    recompute_digests: bool = False
    """Whether to compute the digests of the base's weights again instead of using cached ones."""


@dataclass(frozen=True)
class OpenAdapter:
    """An adapter with its base and the precision of training, before weights load."""

    name: str
    adapter: BoundAdapter
    precision: PrecisionPlan
    run: RunFolder | None = None
    parcel: Parcel | None = None
    made_by_user: bool = False
    """Whether this user made the adapter on this machine."""
    training_run: RunFolder | None = None
    """Run that trained the adapter, if its folder is there: `run`, or the one that contains the adapter folder."""

    @property
    def system(self) -> str | None:
        """Return the system message of training, if any."""
        identity = self.adapter.stored.identity
        return identity.system if identity else None


def open_adapter(
    source: str, trust: TrustOptions = TrustOptions(), mode: str | None = None, *, loads_model: bool = True
) -> OpenAdapter:
    """Open a run, a parcel or an adapter folder.

    `mode` replaces the quantization mode of training. Unless `loads_model`, the device is not chosen or checked. Raises
    UsageError for any other `source`, and the errors of its content and of the device.
    """
    files = find_adapter(source, trust)
    trust = files.name_merged_base(trust)
    hardware = detect_hardware() if loads_model else describe_cpu()  # before a base is downloaded
    adapter = resolve_adapter(
        files.stored, trust, made_by_user=files.made_by_user, untrusted_name=not files.made_by_user
    )
    precision = adopt_base_precision(choose_precision(files.trained, mode, hardware), adapter.base, hardware)
    if loads_model:
        check_base_mode(files.stored.special_variants, precision.mode, "--quantization 4bit")
    return OpenAdapter(
        source, adapter, precision, files.run, files.parcel, files.made_by_user, files.run or files.enclosing_run
    )


@dataclass(frozen=True)
class FoundAdapter:
    """An adapter whose files were found, before its base and chat template are."""

    stored: StoredAdapter
    trained: PrecisionPlan | PrecisionReceipt | None = None
    """Precision of the base in training, if known."""
    run: RunFolder | None = None
    parcel: Parcel | None = None
    enclosing_run: RunFolder | None = None
    """Run of an adapter folder that is inside a run."""
    made_by_user: bool = False

    def name_merged_base(self, trust: TrustOptions) -> TrustOptions:
        """Return the trust options with the merged base in the adapter's run, if there is one and no other is named.

        The run may have been moved, and the name of the base is the path that it had in training.
        """
        run = self.run or self.enclosing_run
        if trust.base is not None or run is None or not run.merged_base.is_dir():
            return trust
        return replace(trust, base=str(run.merged_base))


def find_adapter(source: str, trust: TrustOptions = TrustOptions()) -> FoundAdapter:
    """Find the files of a run, a parcel or an adapter folder. A parcel is verified.

    Raises UsageError for any other `source`, and the errors of its content.
    """
    path = expand_user_path(source)
    if trust.signer and not is_parcel(path):
        raise UsageError(f"--signer belongs to parcels: {source} is not a parcel, and nothing else is signed.")
    if trust.adopt and not (is_run_folder(path) or _find_enclosing_run(path)):
        raise UsageError(f"--adopt belongs to runs: {sanitize_line(source)} is not a run.")
    if is_parcel(path):
        parcel = open_parcel(path, trust.signer, follow_links=trust.follow_links)
        return FoundAdapter(parcel.stored, parcel.receipt.precision, parcel=parcel)
    if is_adapter_folder(path) and not is_run_folder(path):
        stored, run = read_adapter(path), _find_enclosing_run(path)
        if run is None:
            return FoundAdapter(stored)
        open_run_folder(run.path)  # checks the files in the folder
        return FoundAdapter(stored, run.read_precision(), enclosing_run=run, made_by_user=_is_own_run(run, trust))
    if name := find_hub_name(source):
        try:
            return FoundAdapter(read_adapter(find_or_download_adapter(name), name))
        except UnavailableError as error:
            raise UnavailableError(f"There is no run, parcel or folder {name}.\n{error}") from error
    if not is_run_folder(path) and (other := explain_other_adapter_folder(path, source)):
        raise UsageError(other)
    run = open_run_folder(source)
    if not is_adapter_folder(run.adapter):
        raise UsageError(
            f"The run {source} has no adapter, because its training was interrupted. "
            "Fix: continue it with sft --resume."
        )
    trained = run.read_precision()
    return FoundAdapter(read_adapter(run.adapter), trained, run, made_by_user=_is_own_run(run, trust))


def find_hub_name(source: str) -> str | None:
    """Return a source that can only be an adapter or a base on the hub, because no such path and no folder of it exist.

    A mistyped path, such as that of a run, is not looked for on the hub.
    """
    path = expand_user_path(source)
    may_be_path = path.parent.exists() or path.parent.name == _RUNS_FOLDER_NAME
    return source if HUB_ID.fullmatch(source) and not may_be_path else None


def is_adapter_of_hub(source: str) -> bool:
    """Return whether a source is the hub id of an adapter, cached or listed by the hub."""
    name = find_hub_name(source)
    if name is None or find_cached_base(name, None):
        return False
    try:
        return find_cached_adapter(name) is not None or is_adapter_on_hub(name)
    except HubFailureError:
        return False  # the search for a base of that name explains it


def choose_precision(
    trained: PrecisionPlan | PrecisionReceipt | None, mode: str | None, hardware: Hardware
) -> PrecisionPlan:
    """Return the precision in which an adapter is used here, with another quantization mode if one is given."""
    quantization = QuantizationSection(mode="none")
    if mode:
        quantization = QuantizationSection.model_validate({"mode": mode})
    elif trained:
        quantization = QuantizationSection(mode=trained.mode, double_quantization=trained.double_quantization)
    return plan_inference_precision(quantization, hardware, trained.dtype if trained else None)


def open_adapters(sources: Sequence[str], trust: TrustOptions) -> list[OpenAdapter]:
    """Open several adapters. Raise one ConsentError for all of them, because one flag accepts all."""
    opened: list[OpenAdapter] = []
    questions: list[ConsentError] = []
    for source in sources:
        try:
            opened.append(open_adapter(source, trust))
        except ConsentError as question:
            questions.append(question)
    if questions:
        raise ConsentError("\n".join(dict.fromkeys(question.message for question in questions)), questions[0].flag)
    return opened


def _find_enclosing_run(adapter: Path) -> RunFolder | None:
    """Return the run that contains an adapter folder; None for any other folder."""
    run = RunFolder(adapter.absolute().parent)
    return run if is_run_folder(run.path) and adapter.absolute().name == run.adapter.name else None


def _is_own_run(run: RunFolder, trust: TrustOptions) -> bool:
    """Return whether this user made a run on this machine or adopts it now; log the reason if not."""
    reason = find_foreign_reason(run)
    if reason is not None and trust.adopt:
        sign_run(run)
        logger.info(f"{run.path} is now signed as your own.")
        return True
    if reason is not None:
        logger.info(reason)
    return reason is None


def resolve_adapter(
    stored: StoredAdapter,
    trust: TrustOptions = TrustOptions(),
    *,
    made_by_user: bool = False,
    untrusted_name: bool = False,
) -> BoundAdapter:
    """Find an adapter's base and chat template and check that they match the training.

    If `made_by_user`, the adapter's template is used without a question. If `untrusted_name`, the name of the base is
    not used to download or open anything. Raises IntegrityError for another base or template, UnavailableError if the
    base cannot be found.
    """
    base = find_adapter_base(stored, trust, untrusted_name=untrusted_name)
    if stored.identity is None:
        stored = fit_foreign_adapter(stored, base)
    tokenizer = load_tokenizer(base)
    has_own_template = install_trained_template(
        stored,
        tokenizer,
        accept=trust.accept_template or trust.compare_template_only,
        made_by_user=made_by_user,
    )
    if stored.folder is not None:
        check_tokenizer_beside(stored.name, stored.folder, base, tokenizer, force=trust.force_base)
    install_trained_thinking(stored, tokenizer)
    runs_template = not (has_own_template and trust.compare_template_only)
    install_trained_tokens(stored, base, tokenizer, run_template=runs_template)
    return bind_adapter(
        stored,
        base,
        tokenizer,
        force=trust.force_base,
        recompute_digests=trust.recompute_digests,
        run_template=runs_template,
    )


def find_adapter_base(stored: StoredAdapter, trust: TrustOptions, *, untrusted_name: bool) -> LocalBase:
    """Return the base that the user named, or the one that the adapter names. Raise UnavailableError if missing."""
    if trust.base is not None:
        return find_base(BaseSection(name=trust.base))
    name, revision = stored.base
    wanted = BaseSection(name=name, revision=revision)
    if untrusted_name and name not in bundled_base_names() and not _is_downloaded(wanted):
        raise UnavailableError(explain_missing_base(sanitize_line(stored.name), name, revision) + stored.base_hint)
    return find_base(wanted)


def _is_downloaded(base: BaseSection) -> bool:
    """Return whether a base with an untrusted name was downloaded before; a name that is a path is never opened.

    Opening a path such as `\\\\host\\share` or `/net/host` can already send a password to that host.
    """
    if not HUB_ID.fullmatch(base.name):
        return False
    return not Path(base.name).exists() and is_base_local(base)
