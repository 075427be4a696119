"""Write the adapter as a plain PEFT folder, and check it with PEFT in a process without lora_chat."""

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path

from lora_chat.errors import UsageError
from lora_chat.export.exporter import ExportJob
from lora_chat.export.merge import AdapterBlend
from lora_chat.export.parity.compare import ParityReport, measure_parity
from lora_chat.export.parity.peft_runner import PeftRunner
from lora_chat.export.parity.samples import ParitySample
from lora_chat.models.adapter import write_stored_adapter

logger = logging.getLogger(__name__)

_REPORT_NAME = "PEFT adapter"


class PeftExporter:
    """The writer of a folder with weights, PEFT's config and the chat template."""

    def __init__(self, job: ExportJob) -> None:
        self._job = job

    def check(self) -> None:
        """Raise UsageError for more than one adapter."""
        if len(self._job.blend.adapters) > 1:
            raise UsageError(
                f"A PEFT folder contains one adapter: {len(self._job.blend.adapters)} are given. "
                "Fix: export each one; PEFT can load several."
            )

    def write(self) -> Iterator[tuple[str, Path]]:
        """Write the adapter and the chat template into the folder."""
        blend, folder = self._job.blend, self._job.folder
        write_stored_adapter(blend.adapters[0][0].stored, folder)
        (folder / "chat_template.jinja").write_text(str(blend.tokenizer.chat_template), encoding="utf-8")
        if blend.adapters[0][0].stored.new_token_ids:
            blend.tokenizer.save_pretrained(folder)
        yield _REPORT_NAME, folder

    def open_runner(self, path: Path) -> PeftRunner:
        """Open the folder in PEFT."""
        return _open_in_peft(self._job.blend, self._job.samples, path)


def check_adapter_parity(blend: AdapterBlend, samples: Sequence[ParitySample], folder: Path) -> ParityReport:
    """Compare a folder in PEFT's layout, as PEFT opens it, with the adapted model."""
    logger.info("Computing the outputs of the adapted model")
    expected = blend.collect_outputs(samples)
    return measure_parity(_REPORT_NAME, _open_in_peft(blend, samples, folder), expected, samples, blend.stop_ids)


def _open_in_peft(blend: AdapterBlend, samples: Sequence[ParitySample], folder: Path) -> PeftRunner:
    """Open the folder in PEFT and compute all outputs there."""
    logger.info("Computing the outputs in PEFT, in a process without lora_chat")
    pad_id = int(blend.tokenizer.pad_token_id)
    num_rows = max(blend.adapters[0][0].stored.new_token_ids, default=-1) + 1
    return PeftRunner(folder, blend.base, blend.precision, samples, blend.stop_ids, pad_id, num_rows)
