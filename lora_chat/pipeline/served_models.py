"""The base and adapters that a server has in memory, each adapter admitted by name after its checks."""

import itertools
import logging
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import TYPE_CHECKING, TypeGuard

from lora_chat.config.plan import PrecisionPlan
from lora_chat.data.encoding.chat_template import install_template
from lora_chat.errors import ConsentError, IntegrityError, LoraChatError, OutOfMemoryError, UsageError, first_line
from lora_chat.inference.continuous.batch_generator import BatchGenerator
from lora_chat.inference.continuous.request import BatchLimits
from lora_chat.models.adapter_config import StoredAdapter
from lora_chat.models.base_model import load_base_model, load_tokenizer, read_max_positions
from lora_chat.models.named_adapters import add_adapter, discard_adapter, remove_adapter
from lora_chat.models.stop_tokens import read_stop_ids
from lora_chat.pipeline.admission import check_before_loading, name_model
from lora_chat.pipeline.admission_reference import ServedAdapter, check_reference
from lora_chat.pipeline.admitted_model import BARE_BASE, AdmissionCheck, AdmittedModel, format_checks
from lora_chat.pipeline.open_adapter import OpenAdapter, TrustOptions
from lora_chat.pipeline.served_base import SharedBase, name_base, open_on_base, plan_models
from lora_chat.pipeline.served_memory import check_base_memory, check_file_memory, read_into_memory
from lora_chat.pipeline.served_names import NamedSource, read_named_source, shorten_source
from lora_chat.system.gpu_memory import release_unused_memory
from lora_chat.system.malloc import trim_memory
from lora_chat.system.memory_limit import is_out_of_memory
from lora_chat.system.sanitize import sanitize_line
from lora_chat.system.user_path import expand_user_path

if TYPE_CHECKING:
    from transformers import PreTrainedModel

logger = logging.getLogger(__name__)

MAX_ADAPTERS = 64
"""Number of adapters in memory at once."""
_LONGEST_REPLY_SECONDS, _IDLE_CHECK_SECONDS = 600.0, 0.5
"""Time after which a replaced adapter is removed although requests use it, and time between two looks, in seconds."""
_MAX_REFUSED, _MAX_REASON_CHARACTERS = 1000, 2000
"""Number of things that are listed as refused, and characters of each reason."""


class ServedModels:
    """One base in memory with its adapters, the thread that answers for them, and their names.

    Every method may be called from any thread. Adapters are loaded and unloaded one after another.
    """

    def __init__(
        self, shared: SharedBase, trust: TrustOptions, mode: str | None, limits: BatchLimits, max_adapters: int
    ) -> None:
        self._shared, self._trust, self._mode, self._max_adapters = shared, trust, mode, max_adapters
        base, precision = shared.base, shared.precision
        check_base_memory(base, precision)
        logger.info(f"Loading {base.name} ({precision.mode}, {precision.dtype}, on {precision.device})")
        model = load_base_model(base, precision).eval()
        tokenizer = load_tokenizer(base)
        install_template(tokenizer)
        self._positions = read_max_positions(base)
        self.generator = BatchGenerator(model, int(tokenizer.pad_token_id), replace(limits, positions=self._positions))
        self._numbers, self._lock, self._admission = itertools.count(1), threading.Lock(), threading.Lock()
        self.refused: dict[str, str] = {}
        """Reasons why named things are not served, by their names."""
        bare = AdmittedModel(
            BARE_BASE,
            None,
            tokenizer,
            tuple(read_stop_ids(base, tokenizer)),
            None,
            self._positions,
            (AdmissionCheck("base", True, f"{name_model(base)} without an adapter, with its own chat template"),),
            base.name,
            int(time.time()),
        )
        self._admitted: dict[str, AdmittedModel] = {BARE_BASE: bare}

    @property
    def precision(self) -> PrecisionPlan:
        """Return the precision of the base in memory."""
        return self._shared.precision

    def list(self) -> "Sequence[AdmittedModel]":
        """Return all models that answer."""
        with self._lock:
            return tuple(self._admitted.values())

    def find(self, name: str) -> AdmittedModel | None:
        """Return the model of a name."""
        with self._lock:
            return self._admitted.get(name)

    def admit(self, source: str, trust: TrustOptions | None = None, *, replaces: bool = False) -> AdmittedModel:
        """Check an adapter, load it and let it answer. `source` may be NAME=THING.

        With `replaces`, it takes the place of the model of that name once it has passed its checks. Raises
        LoraChatError with the reason if it may not answer.
        """
        try:
            named = read_named_source(source)
        except UsageError as error:
            self.refuse(NamedSource(shorten_source(source), source), error)
            raise
        with self._admission:
            try:
                check_file_memory(expand_user_path(named.source))
                opened = open_on_base(named.source, trust or self._trust, self._mode, self._shared.base)
                return self._admit(named, opened, replaces=replaces)
            except LoraChatError as error:
                self.refuse(named, error)
                raise

    def admit_stranger(self, path: str, *, replaces: bool = False) -> AdmittedModel:
        """Admit a parcel from a folder into which others write, as `admit` does.

        It is bound to the base in memory, and no consent of the command line applies to it.
        """
        trust = TrustOptions(base=name_base(self._shared.base), signer=self._trust.signer, follow_links=False)
        return self.admit(path, trust, replaces=replaces)

    def admit_opened(self, named: NamedSource, opened: OpenAdapter) -> bool:
        """Admit an adapter that was opened already. Return whether it passed; `refused` has the reason if not."""
        with self._admission:
            try:
                self._admit(named, opened)
            except LoraChatError as error:
                self.refuse(named, error)
                return False
        return True

    def refuse(self, named: NamedSource, error: LoraChatError) -> None:
        """List a thing as refused, and say it loudly."""
        logger.warning(f"NOT SERVED: {named.name} ({sanitize_line(named.source, 300)}). {error}")
        reason = str(error)
        if _asks(error):
            reason = f"{first_line(error)} If you trust it, name it on the command line and add {error.flag}."
        with self._lock:
            self.refused.pop(named.name, None)
            if len(self.refused) < _MAX_REFUSED:
                self.refused[named.name] = reason.replace(named.source, named.name)[:_MAX_REASON_CHARACTERS]

    def forget_refusal(self, name: str) -> None:
        """No longer list a thing as refused, because it was removed."""
        with self._lock:
            self.refused.pop(name, None)

    def dismiss(self, name: str) -> None:
        """Unload an adapter and free its memory. Raise UsageError if none has this name."""
        with self._admission, self._lock:
            admitted = self._admitted.get(name)
            if admitted is None or admitted.adapter is None:
                raise UsageError(f"No adapter is loaded under the name {sanitize_line(name, 100)}.")
            del self._admitted[name]
        self._detach(admitted.adapter)
        logger.info(f"{name} is unloaded.")

    def close(self, timeout: float = 0.0) -> None:
        """Stop answering."""
        self.generator.close(timeout)

    def _admit(self, named: NamedSource, opened: OpenAdapter, *, replaces: bool = False) -> AdmittedModel:
        """Check, load and check again; the model answers only after the last check."""
        before = self.find(named.name)
        if before is not None and not replaces:
            raise UsageError(f"The name {named.name} is taken. Fix: choose another, NAME={named.source}.")
        if len(self.list()) - (before is not None) > self._max_adapters:
            raise UsageError(f"{self._max_adapters} adapters are loaded, the most allowed. Fix: unload one.")
        tokenizer = opened.adapter.tokenizer
        stop_ids = tuple(read_stop_ids(self._shared.base, tokenizer))
        stored = read_into_memory(opened.adapter.stored, self._shared.precision)
        checks, reference = check_before_loading(opened, stored, self._shared, stop_ids)
        adapter = self._attach(stored)
        served = ServedAdapter(self.generator, adapter, tokenizer, stop_ids, opened.system, self._shared.precision)
        try:
            with _explained_errors(named.name):
                checks += check_reference(served, reference)
        except BaseException:
            self._detach(adapter)
            raise
        admitted = AdmittedModel(
            named.name,
            adapter,
            tokenizer,
            stop_ids,
            opened.system,
            self._positions,
            tuple(checks),
            opened.name,
            int(time.time()),
            opened.training_run,
        )
        with self._lock:
            self._admitted[named.name] = admitted
            self.refused.pop(named.name, None)
        if before is not None and before.adapter is not None:
            threading.Thread(
                target=self._detach_when_idle, args=(before.adapter,), name="retired adapter", daemon=True
            ).start()
        logger.info(format_checks(admitted))
        return admitted

    def _attach(self, stored: StoredAdapter) -> str:
        """Attach an adapter between two steps, and return its name in the generator."""
        number = next(self._numbers)

        def attach(model: "PreTrainedModel") -> str:
            try:
                self.generator.model, attached = add_adapter(model, stored, number)
            except BaseException:
                self.generator.model = discard_adapter(model, number)
                raise
            return attached

        with _explained_errors(stored.name):
            return self.generator.run_between_steps(attach)

    def _detach(self, adapter: str) -> None:
        """Remove an adapter between two steps."""

        def detach(model: "PreTrainedModel") -> None:
            self.generator.model = remove_adapter(model, adapter)

        self.generator.run_between_steps(detach)
        release_unused_memory()
        trim_memory()

    def _detach_when_idle(self, adapter: str) -> None:
        """Remove an adapter when its last request has ended, which may take as long as a reply."""

        def detach(model: "PreTrainedModel") -> bool:
            if self.generator.is_using(adapter) and time.monotonic() < end:
                return False
            self.generator.model = remove_adapter(model, adapter)
            return True

        end = time.monotonic() + _LONGEST_REPLY_SECONDS
        with suppress(RuntimeError):  # the server ends
            time.sleep(_IDLE_CHECK_SECONDS)  # a request may have found the model and not be submitted yet
            while not self.generator.run_between_steps(detach):
                time.sleep(_IDLE_CHECK_SECONDS)
            release_unused_memory()
        trim_memory()


@contextmanager
def _explained_errors(name: str) -> Iterator[None]:
    """Turn every error of a strange adapter into one that refuses it, because the server continues."""
    try:
        yield
    except LoraChatError:
        raise
    except Exception as error:
        if is_out_of_memory(error):
            raise OutOfMemoryError(f"{name} does not fit into memory.", "unload another adapter.") from error
        raise IntegrityError(f"{name} cannot be used with this base: {first_line(error)}") from error


def _asks(error: LoraChatError) -> TypeGuard[ConsentError]:
    """Return whether an error asks for consent, whose message shows a whole template."""
    return isinstance(error, ConsentError)


def open_served_models(
    sources: Sequence[str],
    trust: TrustOptions,
    mode: str | None,
    limits: BatchLimits,
    max_adapters: int = MAX_ADAPTERS,
) -> ServedModels:
    """Open runs, parcels, adapters and bases that share one base, and load what passes its checks.

    What fails is in `refused`, and the rest is served. Raises IntegrityError if nothing that was named can be served,
    and UsageError if things need different bases.
    """
    planned = plan_models(sources, trust, mode)
    models = ServedModels(planned.shared, trust, mode, limits, max_adapters)
    try:
        for named, error in planned.refused:
            models.refuse(named, error)
        passed = [models.admit_opened(named, opened) for named, opened in planned.adapters]
        if not planned.has_base and not any(passed):
            reasons = "\n".join(f"{name}: {reason}" for name, reason in models.refused.items())
            raise IntegrityError(f"Nothing that was named can be served.\n{reasons}")
    except BaseException:
        models.close()
        raise
    return models
