"""The base and adapters that a server has in memory, each adapter admitted by name."""

import itertools
import logging
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from lora_chat.config.plan import PrecisionPlan, plan_inference_precision
from lora_chat.config.recipe import BaseSection, QuantizationSection
from lora_chat.data.encoding.chat_template import install_template
from lora_chat.errors import IntegrityError, LoraChatError, UsageError
from lora_chat.inference.continuous.batch_generator import BatchGenerator
from lora_chat.inference.continuous.request import BatchLimits
from lora_chat.models.adapter_files import is_adapter_folder
from lora_chat.models.base_model import LocalBase, find_base, load_base_model, load_tokenizer, read_max_positions
from lora_chat.models.named_adapters import add_adapter, remove_adapter
from lora_chat.models.stop_tokens import read_stop_ids
from lora_chat.pipeline.admitted_model import BARE_BASE, AdmissionCheck, AdmittedModel
from lora_chat.pipeline.base_precision import adopt_base_precision
from lora_chat.pipeline.open_adapter import OpenAdapter, TrustOptions, is_adapter_of_hub, open_adapter
from lora_chat.runs.run_folder import is_run_folder
from lora_chat.sharing.parcel import is_parcel
from lora_chat.system.hardware import detect_hardware
from lora_chat.system.user_path import expand_user_path

if TYPE_CHECKING:
    from transformers import PreTrainedModel

logger = logging.getLogger(__name__)


class ServedModels:
    """One base in memory with its adapters, the thread that answers for them, and their names."""

    def __init__(self, base: LocalBase, precision: PrecisionPlan, trust: TrustOptions, limits: BatchLimits) -> None:
        self._base, self._precision, self._trust = base, precision, trust
        logger.info(f"Loading {base.name} ({precision.mode}, {precision.dtype}, on {precision.device})")
        model = load_base_model(base, precision).eval()
        tokenizer = load_tokenizer(base)
        install_template(tokenizer)
        self._positions = read_max_positions(base)
        self.generator = BatchGenerator(model, int(tokenizer.pad_token_id), replace(limits, positions=self._positions))
        self._numbers, self._lock = itertools.count(1), threading.Lock()
        self.refused: dict[str, str] = {}
        """Reasons why named things are not served."""
        bare = AdmittedModel(
            BARE_BASE,
            None,
            tokenizer,
            tuple(read_stop_ids(base, tokenizer)),
            None,
            self._positions,
            (),
            base.name,
            int(time.time()),
        )
        self._admitted: dict[str, AdmittedModel] = {BARE_BASE: bare}

    def list(self) -> "Sequence[AdmittedModel]":
        """Return all models that answer."""
        with self._lock:
            return tuple(self._admitted.values())

    def find(self, name: str) -> AdmittedModel | None:
        """Return the model of a name."""
        with self._lock:
            return self._admitted.get(name)

    def admit(self, source: str) -> AdmittedModel:
        """Check an adapter, load it and let it answer. Raise LoraChatError with the reason if it may not."""
        try:
            return self._admit(open_adapter(source, self._trust))
        except LoraChatError as error:
            self.refused[_choose_name(source)] = str(error)
            raise

    def _admit(self, opened: OpenAdapter) -> AdmittedModel:
        name = _choose_name(opened.name)
        if self.find(name) is not None:
            raise UsageError(f"Two models have the name {name}.")
        if opened.adapter.base.folder != self._base.folder:
            raise IntegrityError(f"{opened.name} was trained on {opened.adapter.base.name}, not on {self._base.name}.")

        def attach(model: "PreTrainedModel") -> str:
            self.generator.model, attached = add_adapter(model, opened.adapter.stored, next(self._numbers))
            return attached

        tokenizer = opened.adapter.tokenizer
        admitted = AdmittedModel(
            name,
            self.generator.run_between_steps(attach),
            tokenizer,
            tuple(read_stop_ids(self._base, tokenizer)),
            opened.system,
            self._positions,
            (AdmissionCheck("base", True, "weights, tokenizer and chat template are those of the training"),),
            opened.name,
            int(time.time()),
            opened.run,
        )
        with self._lock:
            self._admitted[name] = admitted
        return admitted

    def dismiss(self, name: str) -> None:
        """Unload an adapter. Raise UsageError if none has this name."""
        with self._lock:
            admitted = self._admitted.get(name)
            if admitted is None or admitted.adapter is None:
                raise UsageError(f"No adapter is loaded under the name {name}.")
            del self._admitted[name]
        adapter = admitted.adapter

        def detach(model: "PreTrainedModel") -> None:
            remove_adapter(model, adapter)

        self.generator.run_between_steps(detach)

    def close(self, timeout: float = 0.0) -> None:
        """Stop answering."""
        self.generator.close(timeout)


def open_served_models(
    sources: Sequence[str], trust: TrustOptions, mode: str | None, limits: BatchLimits
) -> ServedModels:
    """Open runs, parcels, adapters and bases that share one base, and load them."""
    opened = [open_adapter(source, trust, mode) for source in sources if _is_adapter(source)]
    if opened:
        base, precision = opened[0].adapter.base, opened[0].precision
    else:
        hardware = detect_hardware()
        base = find_base(BaseSection(name=trust.base or sources[0]))
        quantization = QuantizationSection.model_validate({"mode": mode or "none"})
        precision = adopt_base_precision(plan_inference_precision(quantization, hardware, None), base, hardware)
    models = ServedModels(base, precision, trust, limits)
    for adapter in opened:
        models._admit(adapter)
    return models


def _is_adapter(source: str) -> bool:
    """Return whether a source is an adapter and not a base."""
    path = expand_user_path(source)
    return is_run_folder(path) or is_adapter_folder(path) or is_parcel(path) or is_adapter_of_hub(source)


def _choose_name(source: str) -> str:
    """Return the name of a model from the last part of its path."""
    name = Path(source).name
    return name.rsplit(".", 1)[0] if is_parcel(expand_user_path(source)) else name
