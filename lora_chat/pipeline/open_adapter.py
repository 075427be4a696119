"""RUN, PARCEL or ADAPTER -> the adapter with the base and the template that it belongs to."""

import difflib
import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lora_chat.config.plan import PrecisionPlan, plan_precision
from lora_chat.config.recipe import BaseSection, QuantizationSection
from lora_chat.data.encoding.bundled_templates import find_bundled_template
from lora_chat.data.encoding.chat_template import install_template
from lora_chat.errors import ConsentError, RecipeError, UnavailableError
from lora_chat.models.adapter_config import StoredAdapter
from lora_chat.models.adapter_files import is_adapter_folder, read_adapter
from lora_chat.models.base_model import LocalBase, find_base, is_base_local, load_tokenizer
from lora_chat.models.bound_adapter import BoundAdapter, bind_adapter
from lora_chat.models.bundled import bundled_base_names
from lora_chat.runs.origin import find_foreign_reason, sign_run
from lora_chat.runs.run_folder import RunFolder, is_run_folder, open_run_folder
from lora_chat.sharing.parcel import Parcel, is_parcel, open_parcel
from lora_chat.system.hardware import detect_hardware
from lora_chat.system.hashing import digest_text
from lora_chat.system.sanitize import sanitize_line, sanitize_lines
from lora_chat.system.user_path import expand_user_path

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

_MAX_SHOWN_LINES, _MAX_SHOWN_CHARACTERS, _MAX_COMPARED_LINES = 400, 40_000, 1000
"""Most of a template that a refusal shows, and most lines that are compared with the base's."""
_HUB_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,95}/[A-Za-z0-9][A-Za-z0-9_.-]{0,95}")


@dataclass(frozen=True)
class TrustOptions:
    """What the person at the keyboard says about a base, a template and a signer."""

    base: str | None = None
    """Where the base is; None: where the adapter says, if that is on this machine."""
    force_base: bool = False
    accept_template: bool = False
    signer: Path | None = None
    """A public key by which a parcel must be signed."""
    compare_template_only: bool = False
    """Whether a template that the adapter brings is compared by its digest and not run."""
    adopt: bool = False
    """Whether runs are signed as this user's own from now on."""
    recompute_digests: bool = False
    """Whether the base's weights are read, whatever digests are remembered of them."""


@dataclass(frozen=True)
class OpenAdapter:
    """An adapter with its base, and how that was held in training; no weights loaded yet."""

    name: str
    adapter: BoundAdapter
    precision: PrecisionPlan
    run: RunFolder | None = None
    parcel: Parcel | None = None
    made_by_user: bool = False
    """Whether this user made it on this machine."""

    @property
    def system(self) -> str | None:
        """The system message of training."""
        identity = self.adapter.stored.identity
        return identity.system if identity else None


def open_adapter(source: str, trust: TrustOptions = TrustOptions(), mode: str | None = None) -> OpenAdapter:
    """Open a run, a parcel or an adapter's folder; `mode` holds the base in another precision than training did.

    Raises RecipeError if it is none of them, and what is raised for what is wrong with it.
    """
    path = expand_user_path(source)
    if trust.signer and not is_parcel(path):
        raise RecipeError(f"--signer belongs to parcels: {source} is none, and nothing else is signed.")
    if trust.adopt and not (is_run_folder(path) or _find_enclosing_run(path)):
        raise RecipeError(f"--adopt belongs to runs: {sanitize_line(source)} is none.")
    run, parcel, made_by_user = None, None, False
    quantization = QuantizationSection(mode="none")
    if is_parcel(path):
        parcel = open_parcel(path, trust.signer)
        held = parcel.receipt.precision
        quantization = QuantizationSection(mode=held.mode, double_quantization=held.double_quantization)
        stored = parcel.stored
    elif is_adapter_folder(path) and not is_run_folder(path):
        stored = read_adapter(path)
        if enclosing_run := _find_enclosing_run(path):
            open_run_folder(enclosing_run.path)  # refuses what should not be in it
            quantization, made_by_user = enclosing_run.read_quantization(), _is_own_run(enclosing_run, trust)
    else:
        run = open_run_folder(source)
        if not is_adapter_folder(run.adapter):
            raise RecipeError(f"The run {source} has no adapter: its training did not get that far.")
        quantization = run.read_quantization()
        stored, made_by_user = read_adapter(run.adapter), _is_own_run(run, trust)
    if mode:
        quantization = QuantizationSection.model_validate({"mode": mode})
    adapter = resolve_adapter(stored, trust, made_by_user=made_by_user, untrusted_name=not made_by_user)
    return OpenAdapter(source, adapter, plan_precision(quantization, detect_hardware()), run, parcel, made_by_user)


def open_adapters(sources: Sequence[str], trust: TrustOptions) -> list[OpenAdapter]:
    """Open several as `open_adapter` does; what needs a yes is asked for all at once, since one flag answers for
    all.
    """
    opened: list[OpenAdapter] = []
    questions: list[ConsentError] = []
    for source in sources:
        try:
            opened.append(open_adapter(source, trust))
        except ConsentError as question:
            questions.append(question)
    if questions:
        raise ConsentError("\n".join(dict.fromkeys(one.message for one in questions)), questions[0].flag)
    return opened


def _find_enclosing_run(adapter: Path) -> RunFolder | None:
    """The run whose adapter a path is."""
    run = RunFolder(adapter.absolute().parent)
    return run if is_run_folder(run.path) and adapter.absolute().name == run.adapter.name else None


def _is_own_run(run: RunFolder, trust: TrustOptions) -> bool:
    """Whether this user made a run on this machine, or takes it as his own now; says why not."""
    reason = find_foreign_reason(run)
    if reason is not None and trust.adopt:
        sign_run(run)
        logger.info(f"{run.path} is signed as your own from now on.")
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
    """Find an adapter's base and template and make sure that they are those it was trained with.

    `made_by_user`: its template is taken as it is. `untrusted_name`: nothing is downloaded or opened by its name.
    Raises IntegrityError if something is another, UnavailableError if the base cannot be found.
    """
    base = find_adapter_base(stored, trust, untrusted_name=untrusted_name)
    tokenizer = load_tokenizer(base)
    brought = False
    if made_by_user and stored.template is not None:
        tokenizer.chat_template = stored.template
    else:
        brought = _choose_template(stored, tokenizer, accept=trust.accept_template or trust.compare_template_only)
    return bind_adapter(
        stored,
        base,
        tokenizer,
        force=trust.force_base,
        recompute_digests=trust.recompute_digests,
        run_template=not (brought and trust.compare_template_only),
    )


def find_adapter_base(stored: StoredAdapter, trust: TrustOptions, *, untrusted_name: bool) -> LocalBase:
    """The base that was named, or else the one an adapter names. Raises UnavailableError."""
    if trust.base is not None:
        return find_base(BaseSection(name=trust.base))
    name, revision = stored.base
    wanted = BaseSection(name=name, revision=revision)
    if untrusted_name and name not in bundled_base_names() and not _is_downloaded(wanted):
        shown = sanitize_line(name, 200)
        download = f", or --base {shown}" if _HUB_ID.fullmatch(name) else ""
        raise UnavailableError(
            f"{sanitize_line(stored.name)} belongs to the base {shown}"
            + (f" at revision {sanitize_line(revision, 100)}" if revision else "")
            + ", which is not on this machine under that name.\nName where it is, or that it may be downloaded: "
            f"--base FOLDER{download}. Whatever you name, its digest is compared."
        )
    return find_base(wanted)


def _is_downloaded(base: BaseSection) -> bool:
    """Whether a base that a stranger names was downloaded before; a name that is a path is not even looked at.

    Looking at a path such as `\\\\host\\share` or `/net/host` can already send a password to that host.
    """
    if not _HUB_ID.fullmatch(base.name):
        return False
    return not Path(base.name).exists() and is_base_local(base)


def _choose_template(stored: StoredAdapter, tokenizer: "PreTrainedTokenizerBase", *, accept: bool) -> bool:
    """The base's template or one of ours; a stranger's is a program, and is used only after a yes.

    Returns whether it is the stranger's.
    """
    base_template = install_template(tokenizer)
    wanted = stored.identity.chat_template if stored.identity else None
    if wanted is None or wanted == digest_text(base_template):
        return False
    bundled = find_bundled_template(wanted)
    if bundled is not None:
        install_template(tokenizer, bundled.name)
        return False
    if stored.template is None or digest_text(stored.template) != wanted:
        return False  # `bind_adapter` names the difference
    if not accept:
        raise ConsentError(
            f"{stored.name} brings a chat template of its own, a program that decides what the model reads:\n"
            f"{_format_template_diff(base_template, stored.template)}\nNothing of it was run.",
            "--accept-template",
        )
    tokenizer.chat_template = stored.template
    return True


def _format_template_diff(base_template: str, brought: str) -> str:
    """What a template changes in the base's own, in visible text; of a long one the beginning."""
    lines, others = base_template.splitlines(), brought.splitlines()
    if max(len(lines), len(others)) <= _MAX_COMPARED_LINES:
        diff_lines = list(difflib.unified_diff(lines, others, "the base's", "its own", lineterm=""))
    else:  # comparing can take minutes
        diff_lines = ["+++ its own", *(f"+{line}" for line in others)]
    text = sanitize_lines("\n".join(diff_lines[:_MAX_SHOWN_LINES])[:_MAX_SHOWN_CHARACTERS])
    left = (
        sum(map(len, diff_lines))
        + len(diff_lines)
        - 1
        - min(len("\n".join(diff_lines[:_MAX_SHOWN_LINES])), _MAX_SHOWN_CHARACTERS)
    )
    return f"{text}\n... and {left:,} characters more, not shown" if left > 0 else text
