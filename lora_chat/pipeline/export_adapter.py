"""Export a run or a parcel for other programs, and check each file with the program that reads it."""

import logging
import shutil
from collections.abc import Sequence
from pathlib import Path

from pydantic import Field

from lora_chat.config.base import StrictModel
from lora_chat.errors import UsageError
from lora_chat.export.exporter import ExportJob, export_and_check
from lora_chat.export.formats import EXPORT_FORMATS, GGUF_TYPES
from lora_chat.export.parity.compare import ParityReport
from lora_chat.export.parity.format import format_parity_line, write_parity_reports
from lora_chat.pipeline.held_out import EvaluationFiles
from lora_chat.pipeline.merge_adapters import open_blend
from lora_chat.pipeline.open_adapter import TrustOptions
from lora_chat.system.atomic_write import atomic_folder
from lora_chat.system.console import display_path, format_bytes
from lora_chat.system.user_path import expand_user_path

logger = logging.getLogger(__name__)


class ExportResult(StrictModel):
    """The written files and their parity reports."""

    exported: str
    """Folder of the files."""
    files: dict[str, int]
    """Size of each file, in bytes, by name."""
    parity_reports: tuple[ParityReport, ...] = Field(alias="proofs")
    """One report for each file that was checked."""


def export_adapter(
    source: str,
    to: str,
    gguf_types: Sequence[str],
    out: Path | None,
    evaluation_files: EvaluationFiles,
    trust: TrustOptions,
    *,
    accept: bool,
) -> ExportResult:
    """Export an adapter to the format `to` and check it. Nothing is kept if one parity check fails.

    Raises UsageError, IntegrityError, UnavailableError.
    """
    _check_gguf_types(to, gguf_types)
    blend, make_samples, opened = open_blend([source], None, evaluation_files, trust)
    name = expand_user_path(source).resolve().name.removesuffix(".lorachat")
    out = (out or Path("exports") / f"{name}-{to}").absolute()
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(f"The folder is not empty: {display_path(out)}. Fix: name another folder with --out.")
    samples = make_samples()
    with atomic_folder(out, "the export", shared=True) as folder:
        job = ExportJob(blend, samples, folder, name, gguf_types, opened.system)
        reports = export_and_check(EXPORT_FORMATS[to].load_exporter(), job, accept=accept)
        write_parity_reports(folder, reports)
        shutil.rmtree(job.work_folder, ignore_errors=True)
    for report in reports:
        logger.info(f"{report.what}: {format_parity_line(report)}")
    files = {file.name: file.stat().st_size for file in sorted(out.iterdir())}
    logger.info(
        f"Exported to {display_path(out)}: "
        + ", ".join(f"{file} ({format_bytes(size)})" for file, size in files.items())
    )
    return ExportResult(exported=str(out), files=files, proofs=tuple(reports))


def _check_gguf_types(to: str, gguf_types: Sequence[str]) -> None:
    """Raise UsageError for unknown GGUF types, and for more of them than the format takes."""
    max_types = EXPORT_FORMATS[to].max_types
    if gguf_types and max_types == 0:
        with_types = " and ".join(f"--to {name}" for name, choice in EXPORT_FORMATS.items() if choice.max_types != 0)
        raise UsageError(f"--type belongs to {with_types}: --to {to} has no types. Fix: leave --type out.")
    if max_types is not None and len(set(gguf_types)) > max_types:
        raise UsageError(f"Too many types for --to {to}: {', '.join(gguf_types)}. Fix: give one --type.")
    if unknown := sorted(set(gguf_types) - set(GGUF_TYPES)):
        raise UsageError(f"Unknown type: --type {unknown[0]}. Fix: choose from {', '.join(GGUF_TYPES)}.")
