"""Write the report of a run, or the comparison of several runs, as one web page."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lora_chat.errors import LoraChatError, UsageError, first_line
from lora_chat.evaluation.run_judgements import RunJudgements
from lora_chat.report.collect import collect_run
from lora_chat.report.page import build_run_page
from lora_chat.report.run_comparison import build_comparison_page
from lora_chat.runs.run_folder import RunFolder, open_run_folder
from lora_chat.system.atomic_write import write_text_atomically
from lora_chat.system.console import display_path
from lora_chat.system.user_path import expand_user_path

logger = logging.getLogger(__name__)

_COMPARISON_NAME = "comparison-report.html"
_MAX_RUNS = 24


def write_report(run: RunFolder) -> None:
    """Write the report of a run into its folder."""
    run.write_text(run.report, build_run_page(collect_run(run)))


def try_write_report(run: RunFolder) -> None:
    """Write the report of a run, and warn of a failure, which changes nothing else of a finished run."""
    try:
        write_report(run)
        logger.info(f"Report: {display_path(run.report)}")
    except (LoraChatError, OSError, ValueError, TypeError, ArithmeticError, LookupError, AttributeError) as error:
        logger.warning(f"The report could not be written: {first_line(error)}\nFix: lora-chat report {run.path}")


@dataclass(frozen=True)
class WrittenReport:
    """A page that was written, and the votes on the adapters of its runs."""

    path: Path
    judgements: tuple[RunJudgements, ...]

    @property
    def lines(self) -> list[str]:
        """Return the results of the votes as lines of text, if it is the page of one run."""
        return [f"Judgement: {line}" for line in self.judgements[0].lines] if len(self.judgements) == 1 else []


def write_reports(sources: Sequence[str], target: Path | None) -> WrittenReport:
    """Write the report of one run, or the comparison of several.

    By default one report goes into its run folder, and a comparison into the working directory. Raise UsageError for a
    path that is not a run.
    """
    runs = [open_run_folder(source) for source in sources]
    if len(runs) > _MAX_RUNS:
        raise UsageError(f"{len(runs)} runs do not fit on one page. Fix: give at most {_MAX_RUNS} runs.")
    default = runs[0].report if len(runs) == 1 else Path(_COMPARISON_NAME)
    path = expand_user_path(target) if target else default
    _check_target(path)
    contents = [collect_run(run) for run in runs]
    page = build_run_page(contents[0]) if len(runs) == 1 else build_comparison_page(contents)
    write_text_atomically(path, page, "the report")
    return WrittenReport(path, tuple(record.judgements for record in contents))


def _check_target(path: Path) -> None:
    """Raise UsageError if a page cannot be written there, or if that would replace another kind of file."""
    if path.is_dir():
        raise UsageError(f"{display_path(path)} is a folder. Fix: give the name of a file with --to.")
    if not path.parent.is_dir():
        raise UsageError(f"{display_path(path.parent)} is not a folder. Fix: make it, or name another with --to.")
    if path.exists() and path.suffix.lower() not in (".html", ".htm"):
        raise UsageError(f"{display_path(path)} exists and is not a page. Fix: give a name that ends with .html.")
