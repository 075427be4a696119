"""The base that everything in a server shares, found before its weights load."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace

from lora_chat.config.plan import PrecisionPlan, plan_inference_precision
from lora_chat.config.recipe import QuantizationSection
from lora_chat.errors import IntegrityError, LoraChatError, UnavailableError, UsageError
from lora_chat.models.adapter_files import is_adapter_folder
from lora_chat.models.base_model import LocalBase, load_tokenizer
from lora_chat.models.bundled import bundled_base_names
from lora_chat.models.identity import compute_identity
from lora_chat.pipeline.admitted_model import BARE_BASE
from lora_chat.pipeline.base_precision import adopt_base_precision
from lora_chat.pipeline.named_base import find_named_base
from lora_chat.pipeline.open_adapter import OpenAdapter, TrustOptions, is_adapter_of_hub, open_adapter
from lora_chat.pipeline.served_names import NamedSource, check_unique_names, read_named_source, shorten_source
from lora_chat.runs.run_folder import is_run_folder
from lora_chat.sharing.parcel import is_parcel
from lora_chat.system.hardware import detect_hardware
from lora_chat.system.sanitize import sanitize_line
from lora_chat.system.user_path import expand_user_path

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class SharedBase:
    """A base and its precision in memory."""

    base: LocalBase
    precision: PrecisionPlan

    def explain_other(self, opened: OpenAdapter) -> str | None:
        """Return why an adapter cannot use this base; None if it has the same weights in the same precision."""
        if not has_same_weights(opened.adapter.base, self.base):
            return f"it needs {opened.adapter.base.name}, and {self.base.name} is in memory"
        if knows_precision(opened) and not is_same_precision(opened.precision, self.precision):
            return (
                f"it needs the base in {describe_precision(opened.precision)}, and it is in memory in "
                f"{describe_precision(self.precision)}"
            )
        return None


@dataclass(frozen=True)
class PlannedModels:
    """Everything that a server will load, before weights load."""

    shared: SharedBase
    adapters: tuple[tuple[NamedSource, OpenAdapter], ...]
    refused: tuple[tuple[NamedSource, LoraChatError], ...] = ()
    """Things that could not be opened, with the reason."""
    has_base: bool = False
    """Whether the bare base is one of the named things."""


def plan_models(texts: Sequence[str], trust: TrustOptions, mode: str | None) -> PlannedModels:
    """Open everything that a user named, and find the base that all share.

    What cannot be opened is in `refused`. Raises UsageError for names that collide and for things that need different
    bases or precisions, IntegrityError if nothing can be served, and the error of the only thing that is named.
    """
    adapters, bases, refused = [], [], []
    adapter_sources = [read_named_source(text) for text in texts if is_adapter_source(text)]
    check_unique_names(adapter_sources)
    for text in texts:
        if not is_adapter_source(text):
            try:
                bases.append(_find_named_base(text, mode))
            except LoraChatError as error:
                refused.append((NamedSource(shorten_source(text), text), error))
    for named in adapter_sources:
        try:
            adapters.append((named, open_on_base(named.source, trust, mode, bases[0].base if bases else None)))
        except LoraChatError as error:
            refused.append((named, error))
    if not adapters and not bases:
        if len(refused) == 1:
            raise refused[0][1]
        reasons = "\n".join(f"{named.name}: {error}" for named, error in refused)
        raise IntegrityError(f"Nothing that was named can be served.\n{reasons}")
    needs = [(named.name, opened.adapter.base, opened.precision, knows_precision(opened)) for named, opened in adapters]
    needs.sort(key=lambda need: not need[3])  # a foreign adapter takes the precision of the others
    needs += [(BARE_BASE, shared.base, shared.precision, mode is not None) for shared in bases]
    _check_same_base(needs)
    _, base, precision, _ = needs[0]
    return PlannedModels(SharedBase(base, precision), tuple(adapters), tuple(refused), bool(bases))


def open_on_base(source: str, trust: TrustOptions, mode: str | None, base: LocalBase | None) -> OpenAdapter:
    """Open an adapter, on a base that is there anyway if the one that it names cannot be found; digests decide."""
    try:
        return open_adapter(source, trust, mode)
    except UnavailableError:
        if base is None or trust.base is not None:
            raise
        return open_adapter(source, replace(trust, base=name_base(base)), mode)


def name_base(base: LocalBase) -> str:
    """Return the text by which a local base is found again."""
    return base.name if base.name in bundled_base_names() else str(base.folder)


def is_adapter_source(text: str) -> bool:
    """Return whether a text names an adapter and not a base."""
    for source in dict.fromkeys((text, text.partition("=")[2])):
        path = expand_user_path(source)
        if source and (is_run_folder(path) or is_adapter_folder(path) or is_parcel(path) or is_adapter_of_hub(source)):
            return True
    return False


def _find_named_base(text: str, mode: str | None) -> SharedBase:
    """Return a base that a user named. `base=THING` names it, too."""
    source = text.removeprefix(f"{BARE_BASE}=")
    name, _, rest = source.partition("=")
    if rest and "/" not in name and not expand_user_path(source).exists():
        raise UsageError(
            f"There is no run, parcel or adapter {sanitize_line(rest, 300)} that could be called "
            f"{sanitize_line(name, 100)}. Fix: correct the path; a base is always called {BARE_BASE}, so name it alone."
        )
    hardware = detect_hardware()
    base = find_named_base(source)
    quantization = QuantizationSection.model_validate({"mode": mode or "none"})
    return SharedBase(
        base, adopt_base_precision(plan_inference_precision(quantization, hardware, None), base, hardware)
    )


def _check_same_base(needs: Sequence[tuple[str, LocalBase, PrecisionPlan, bool]]) -> None:
    """Raise UsageError unless all things need the same weights in the same precision."""
    _, base, precision, _ = needs[0]
    lines = [
        f"  {name}: {sanitize_line(other.name, 200)}, {describe_precision(needed)}" for name, other, needed, _ in needs
    ]
    fix = "Fix: start a second server for the others (--port)"
    if not all(has_same_weights(other, base) for _, other, _, _ in needs):
        raise UsageError(
            "One server has one base in memory, and these things need different ones:\n"
            + "\n".join(lines)
            + f"\n{fix}, or name one base of the same weights for all with --base BASE."
        )
    if not all(is_same_precision(needed, precision) for _, _, needed, is_known in needs if is_known):
        raise UsageError(
            "One server has its base in one precision, and these things need different ones:\n"
            + "\n".join(lines)
            + f"\n{fix}, or choose one mode for all with --quantization MODE."
        )


def has_same_weights(first: LocalBase, second: LocalBase) -> bool:
    """Return whether two bases are the same model: the same folder, or the same digests of weights and config."""
    if first.folder == second.folder:
        return True
    identities = [compute_identity(base, load_tokenizer(base), stops=()) for base in (first, second)]
    parts = [(identity.weights, identity.files, identity.config) for identity in identities]
    return parts[0] == parts[1]


def is_same_precision(first: PrecisionPlan, second: PrecisionPlan) -> bool:
    """Return whether two precisions give the same numbers."""
    return _numbers_of(first) == _numbers_of(second)


def _numbers_of(precision: PrecisionPlan) -> tuple[object, ...]:
    """Return the parts of a precision that decide the numbers in memory."""
    double = precision.mode == "4bit" and precision.double_quantization
    return precision.device, precision.mode, double, precision.dtype, precision.stored


def knows_precision(opened: OpenAdapter) -> bool:
    """Return whether the precision of training is known; an adapter of another tool names none."""
    return opened.training_run is not None or opened.parcel is not None


def describe_precision(precision: PrecisionPlan) -> str:
    """Return mode, dtype and device for a message."""
    return f"{precision.mode}, {precision.dtype}, on {precision.device}"
