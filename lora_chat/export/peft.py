"""The adapter as a plain folder that PEFT and what is built on it open, proven by PEFT without lora_chat."""

import logging
from collections.abc import Sequence
from pathlib import Path

from lora_chat.errors import RecipeError
from lora_chat.export.merge import AdapterBlend
from lora_chat.export.parity.compare import ParityReport, check_parity, compare_outputs
from lora_chat.export.parity.outputs import collect_outputs
from lora_chat.export.parity.peft_runner import PeftRunner
from lora_chat.export.parity.samples import ParitySample
from lora_chat.export.parity.tolerances import tolerances_for
from lora_chat.models.adapter import write_stored_adapter

logger = logging.getLogger(__name__)

_FORMAT_NAME = "PEFT adapter"


def export_peft(
    blend: AdapterBlend,
    samples: Sequence[ParitySample],
    folder: Path,
    *,
    accept: bool = False,
) -> list[ParityReport]:
    """Write weights and a config of what PEFT needs to know; the template lies beside.

    Raises IntegrityError if PEFT finds another model in it and that is not accepted.
    """
    if len(blend.adapters) > 1:
        raise RecipeError("A PEFT folder holds one adapter; PEFT loads several side by side.")
    stored = blend.adapters[0][0].stored
    write_stored_adapter(stored, folder)
    (folder / "chat_template.jinja").write_text(str(blend.tokenizer.chat_template), encoding="utf-8")
    return [check_parity(check_adapter_parity(blend, samples, folder), accept=accept)]


def check_adapter_parity(blend: AdapterBlend, samples: Sequence[ParitySample], folder: Path) -> ParityReport:
    """A folder in PEFT's layout against the adapted model."""
    logger.info("Asking the adapted model")
    expected = blend.collect_outputs(samples)
    logger.info("Asking PEFT, in a process without lora_chat")
    pad = int(blend.tokenizer.pad_token_id)
    reader = PeftRunner(folder, blend.base, blend.precision, samples, blend.stop_ids, pad)
    delivered = collect_outputs(reader, samples, blend.stop_ids, expected.logits[0].shape[-1])
    return compare_outputs(_FORMAT_NAME, reader.name, expected, delivered, samples, tolerances_for(_FORMAT_NAME))
