"""RUN, PARCEL or ADAPTER -> the adapter with the base and the template that it belongs to."""

import difflib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lora_chat.config.plan import PrecisionPlan, make_precision
from lora_chat.config.recipe import BaseSection, QuantizationSection
from lora_chat.data.encoding.chat_template import CHATML_TEMPLATE, install_template
from lora_chat.errors import BaseUnavailableError, ConsentError, RecipeError
from lora_chat.models.adapter_config import StoredAdapter
from lora_chat.models.adapter_files import is_adapter, read_adapter
from lora_chat.models.base_model import FoundBase, find_base, is_here, load_tokenizer
from lora_chat.models.bound_adapter import FoundAdapter, bind
from lora_chat.models.bundled import embedded_names
from lora_chat.runs.origin import sign_run, why_foreign
from lora_chat.runs.run_folder import RunFolder, is_run, open_run_folder
from lora_chat.sharing.parcel import Parcel, is_parcel, open_parcel
from lora_chat.system.hardware import detect_hardware
from lora_chat.system.hashing import digest_text
from lora_chat.system.sanitize import visible, visible_lines
from lora_chat.system.user_path import user_path

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_SHOWN_LINES, _SHOWN_CHARACTERS, _COMPARED_LINES = 400, 40_000, 1000
"""Most of a template that a refusal shows, and most lines that are compared with the base's."""
_HUB_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,95}/[A-Za-z0-9][A-Za-z0-9_.-]{0,95}")


@dataclass(frozen=True)
class Trust:
    """What the person at the keyboard says about a base, a template and a signer."""

    base: str | None = None
    """Where the base is; None: where the adapter says, if that is on this machine."""
    force_base: bool = False
    accept_template: bool = False
    signer: Path | None = None
    """A public key by which a parcel must be signed."""
    compare_only: bool = False
    """Whether a template that the adapter brings is compared by its digest and not run."""
    adopt: bool = False
    """Whether runs are signed as this user's own from now on."""
    read_files: bool = False
    """Whether the base's weights are read, whatever digests are remembered of them."""


@dataclass(frozen=True)
class Opened:
    """An adapter with its base, and how that was held in training; no weights loaded yet."""

    name: str
    found: FoundAdapter
    precision: PrecisionPlan
    run: RunFolder | None = None
    parcel: Parcel | None = None
    ours: bool = False
    """Whether this user made it on this machine."""

    @property
    def system(self) -> str | None:
        """The system message of training."""
        identity = self.found.stored.identity
        return identity.system if identity else None


def open_thing(thing: str, say: Callable[[str], None], trust: Trust = Trust(), mode: str | None = None) -> Opened:
    """Open a run, a parcel or an adapter's folder; `mode` holds the base in another precision than training did.

    Raises RecipeError if it is none of them, and what is raised for what is wrong with it.
    """
    path = user_path(thing)
    if trust.signer and not is_parcel(path):
        raise RecipeError(f"--signer belongs to parcels: {thing} is none, and nothing else is signed.")
    if trust.adopt and not (is_run(path) or _run_of(path)):
        raise RecipeError(f"--adopt belongs to runs: {visible(thing)} is none.")
    run, parcel, ours = None, None, False
    quantization = QuantizationSection(mode="none")
    if is_parcel(path):
        parcel = open_parcel(path, trust.signer)
        held = parcel.receipt.precision
        quantization = QuantizationSection(mode=held.mode, double_quantization=held.double_quantization)
        stored = parcel.stored
    elif is_adapter(path) and not is_run(path):
        stored = read_adapter(path)
        if around := _run_of(path):
            open_run_folder(around.path)  # refuses what should not be in it
            quantization, ours = around.read_quantization(), _is_ours(around, trust, say)
    else:
        run = open_run_folder(thing)
        if not is_adapter(run.adapter):
            raise RecipeError(f"The run {thing} has no adapter: its training did not get that far.")
        quantization = run.read_quantization()
        stored, ours = read_adapter(run.adapter), _is_ours(run, trust, say)
    if mode:
        quantization = QuantizationSection.model_validate({"mode": mode})
    found = find_adapter(stored, say, trust, ours=ours, named_by_stranger=not ours)
    return Opened(thing, found, make_precision(quantization, detect_hardware()), run, parcel, ours)


def open_things(things: Sequence[str], say: Callable[[str], None], trust: Trust) -> list[Opened]:
    """Open several as `open_thing` does; what needs a yes is asked for all at once, since one flag answers for all."""
    opened: list[Opened] = []
    questions: list[ConsentError] = []
    for thing in things:
        try:
            opened.append(open_thing(thing, say, trust))
        except ConsentError as question:
            questions.append(question)
    if questions:
        raise ConsentError("\n".join(dict.fromkeys(one.message for one in questions)), questions[0].flag)
    return opened


def _run_of(adapter: Path) -> RunFolder | None:
    """The run whose adapter a path is."""
    run = RunFolder(adapter.absolute().parent)
    return run if is_run(run.path) and adapter.absolute().name == run.adapter.name else None


def _is_ours(run: RunFolder, trust: Trust, say: Callable[[str], None]) -> bool:
    """Whether this user made a run on this machine, or takes it as his own now; says why not."""
    why = why_foreign(run)
    if why is not None and trust.adopt:
        sign_run(run)
        say(f"{run.path} is signed as your own from now on.")
        return True
    if why is not None:
        say(why)
    return why is None


def find_adapter(
    stored: StoredAdapter,
    say: Callable[[str], None],
    trust: Trust = Trust(),
    *,
    ours: bool = False,
    named_by_stranger: bool = False,
) -> FoundAdapter:
    """Find an adapter's base and template and make sure that they are those it was trained with.

    `ours`: its template is taken as it is. `named_by_stranger`: nothing is downloaded or opened by its name.
    Raises IntegrityError if something is another, BaseUnavailableError if the base cannot be found.
    """
    base = find_bound_base(stored, say, trust, named_by_stranger=named_by_stranger)
    tokenizer = load_tokenizer(base)
    brought = False
    if ours and stored.template is not None:
        tokenizer.chat_template = stored.template
    else:
        brought = _choose_template(stored, tokenizer, accept=trust.accept_template or trust.compare_only)
    return bind(
        stored,
        base,
        tokenizer,
        say,
        force=trust.force_base,
        read_files=trust.read_files,
        run_template=not (brought and trust.compare_only),
    )


def find_bound_base(
    stored: StoredAdapter, say: Callable[[str], None], trust: Trust, *, named_by_stranger: bool
) -> FoundBase:
    """The base that was named, or else the one an adapter names. Raises BaseUnavailableError."""
    if trust.base is not None:
        return find_base(BaseSection(name=trust.base), say)
    name, revision = stored.base
    wanted = BaseSection(name=name, revision=revision)
    if named_by_stranger and name not in embedded_names() and not _is_kept(wanted):
        shown = visible(name, 200)
        download = f", or --base {shown}" if _HUB_NAME.fullmatch(name) else ""
        raise BaseUnavailableError(
            f"{visible(stored.name)} belongs to the base {shown}"
            + (f" at revision {visible(revision, 100)}" if revision else "")
            + ", which is not on this machine under that name.\nName where it is, or that it may be downloaded: "
            f"--base FOLDER{download}. Whatever you name, its digest is compared."
        )
    return find_base(wanted, say)


def _is_kept(base: BaseSection) -> bool:
    """Whether a base that a stranger names was downloaded before; a name that is a path is not even looked at.

    Looking at a path such as `\\\\host\\share` or `/net/host` can already send a password to that host.
    """
    if not _HUB_NAME.fullmatch(base.name):
        return False
    return not Path(base.name).exists() and is_here(base)


def _choose_template(stored: StoredAdapter, tokenizer: "PreTrainedTokenizerBase", *, accept: bool) -> bool:
    """The base's template or one of ours; a stranger's is a program, and is used only after a yes.

    Returns whether it is the stranger's.
    """
    own = install_template(tokenizer)
    wanted = stored.identity.chat_template if stored.identity else None
    if wanted is None or wanted == digest_text(own):
        return False
    if wanted == digest_text(CHATML_TEMPLATE):
        install_template(tokenizer, "chatml")
        return False
    if stored.template is None or digest_text(stored.template) != wanted:
        return False  # `bind` names the difference
    if not accept:
        raise ConsentError(
            f"{stored.name} brings a chat template of its own, a program that decides what the model reads:\n"
            f"{_shown_change(own, stored.template)}\nNothing of it was run.",
            "--accept-template",
        )
    tokenizer.chat_template = stored.template
    return True


def _shown_change(own: str, brought: str) -> str:
    """What a template changes in the base's own, in visible text; of a long one the beginning."""
    lines, others = own.splitlines(), brought.splitlines()
    if max(len(lines), len(others)) <= _COMPARED_LINES:
        told = list(difflib.unified_diff(lines, others, "the base's", "its own", lineterm=""))
    else:  # comparing can take minutes
        told = ["+++ its own", *(f"+{line}" for line in others)]
    text = visible_lines("\n".join(told[:_SHOWN_LINES])[:_SHOWN_CHARACTERS])
    left = sum(map(len, told)) + len(told) - 1 - min(len("\n".join(told[:_SHOWN_LINES])), _SHOWN_CHARACTERS)
    return f"{text}\n... and {left:,} characters more, not shown" if left > 0 else text
