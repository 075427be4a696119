"""The merge of one or several adapters into a 16-bit model."""

import logging
import math
from collections.abc import Callable, Sequence
from pathlib import Path

from lora_chat.config.base import StrictModel
from lora_chat.errors import UsageError
from lora_chat.export.merge import AdapterBlend, merge_and_read
from lora_chat.export.parity.compare import ParityReport
from lora_chat.export.parity.default_prompts import make_default_samples
from lora_chat.export.parity.format import format_parity_line
from lora_chat.export.parity.reader_runner import find_reader
from lora_chat.export.parity.samples import ParitySample, select_parity_samples
from lora_chat.models.stop_tokens import read_stop_ids
from lora_chat.pipeline.held_out import EvaluationFiles, prepare_evaluation
from lora_chat.pipeline.open_adapter import OpenAdapter, TrustOptions, open_adapters
from lora_chat.system.console import display_path

logger = logging.getLogger(__name__)


class MergeResult(StrictModel):
    """The written model and its parity report."""

    merged: str
    """Folder of the model."""
    proof: ParityReport
    readers: tuple[ParityReport, ...] = ()
    """Parity reports of the other environments that read it."""


def merge_adapters(
    sources: Sequence[str],
    weights: Sequence[float] | None,
    to: Path,
    evaluation_files: EvaluationFiles,
    trust: TrustOptions,
    *,
    original: bool,
    accept: bool,
    check_with: Sequence[str] = (),
) -> MergeResult:
    """Merge adapters and run a parity check of the merged model on the first adapter's held-out dialogues.

    `check_with` lists the Pythons of other environments that must read the merged model too.
    """
    readers = [find_reader(python) for python in check_with]  # before anything is loaded
    blend, make_parity_samples, _ = open_blend(sources, weights, evaluation_files, trust)
    reports = merge_and_read(blend, make_parity_samples(), to, readers, original=original, accept=accept)
    logger.info(f"Merged into {display_path(to.absolute())}. " + "\n".join(map(format_parity_line, reports)))
    return MergeResult(merged=str(to.absolute()), proof=reports[0], readers=tuple(reports[1:]))


def open_blend(
    sources: Sequence[str], weights: Sequence[float] | None, evaluation_files: EvaluationFiles, trust: TrustOptions
) -> tuple[AdapterBlend, Callable[[], list[ParitySample]], OpenAdapter]:
    """Open adapters for a merge or export.

    Return the blend, a function that makes the samples of its parity check, and the first adapter.
    """
    if weights is not None and len(weights) != len(sources):
        raise UsageError(
            f"--weights has {len(weights)} numbers for {len(sources)} adapters. Fix: give one number for each adapter."
        )
    if weights is not None and not all(map(math.isfinite, weights)):
        raise UsageError(f"--weights: {', '.join(map(str, weights))} are not all finite numbers.")
    opened = open_adapters(sources, trust)
    first = opened[0]
    blend = AdapterBlend(
        adapters=tuple(zip([adapter.adapter for adapter in opened], weights or [1.0] * len(opened), strict=True)),
        precision=first.precision,
        stop_ids=tuple(read_stop_ids(first.adapter.base, first.adapter.tokenizer)),
    )
    held_out = prepare_evaluation(first, evaluation_files) if first.run or evaluation_files.data else None

    def make_samples() -> list[ParitySample]:
        """Return held-out dialogues, or without any, replies of the adapted model to default questions."""
        if held_out is not None and len(held_out.parity_dialogues):
            return select_parity_samples(held_out.parity_dialogues)
        logger.info("No held-out dialogues (give them with --data FILE): the parity check uses a few default questions")
        return make_default_samples(blend, first.system)

    return blend, make_samples, first
