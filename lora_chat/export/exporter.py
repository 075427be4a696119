"""Write an export format file by file, and check each file with the program that reads it."""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from lora_chat.export.merge import AdapterBlend
from lora_chat.export.parity.compare import ParityReport, check_parity, measure_parity
from lora_chat.export.parity.outputs import ParityRunner
from lora_chat.export.parity.samples import ParitySample

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ExportJob:
    """The adapters to export, and the place of the files."""

    blend: AdapterBlend
    samples: Sequence[ParitySample]
    folder: Path
    """New folder for the exported files; temporary files go to `work_folder` beside it."""
    name: str = "model"
    """Name of the model, used in file names."""
    gguf_types: Sequence[str] = ()
    system: str | None = None
    """System message of training."""

    @property
    def work_folder(self) -> Path:
        """Return the folder of temporary files."""
        return self.folder.parent / "work"


class Exporter(Protocol):
    """The writer of one export format."""

    def __init__(self, job: ExportJob) -> None: ...

    def check(self) -> None:
        """Raise UsageError or UnavailableError if the format cannot be written, before any weights load."""

    def write(self) -> Iterator[tuple[str, Path]]:
        """Write the files; yield the name of the parity report and the path of each one that must be checked."""

    def open_runner(self, path: Path) -> ParityRunner:
        """Open a written file with the program that reads this format."""


def export_and_check(exporter_class: type[Exporter], job: ExportJob, *, accept: bool = False) -> list[ParityReport]:
    """Write all files of a format and check each one before the next one is written.

    Raises IntegrityError if a file fails its parity check and that is not accepted, UsageError or UnavailableError if
    the format cannot be written.
    """
    exporter = exporter_class(job)
    exporter.check()
    logger.info("Computing the outputs of the adapted model")
    expected = job.blend.collect_outputs(job.samples)
    reports = []
    for report_name, path in exporter.write():
        runner = exporter.open_runner(path)
        report = measure_parity(report_name, runner, expected, job.samples, job.blend.stop_ids)
        reports.append(check_parity(report, accept=accept))
    return reports
