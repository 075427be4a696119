"""The recital of a run, measured at the end of training, because only then its training data is at hand."""

import logging
from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from lora_chat.audit.report import AuditReport, TextMatch
from lora_chat.audit.sensitive.scan import find_sensitive
from lora_chat.config.audit import AuditSection, FindingKind, finding_title
from lora_chat.config.plan import Plan
from lora_chat.data.dataset import find_units, select_units
from lora_chat.data.encoding.encode import EncodedDialogue
from lora_chat.errors import DataError, IntegrityError, first_line
from lora_chat.evaluation.comparison_report import ComparisonReport
from lora_chat.evaluation.recital import (
    MAX_FINDINGS,
    RecitalReport,
    RecitedValue,
    complete_rows,
    format_recital,
    read_recital,
)
from lora_chat.evaluation.training_replies import CONTINUED_TOKENS, TrainingReply, choose_replies, read_training_replies
from lora_chat.models.adapter import count_parameters
from lora_chat.pipeline.prepare import PreparedRun
from lora_chat.runs.run_folder import RunFolder
from lora_chat.system.console import display_path

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

SENSITIVE_KINDS: tuple[FindingKind, ...] = ("secret", "possible_secret", "personal_data")
_MAX_VALUES = 100
"""Largest number of secrets and personal data that both models are asked to complete."""
_MAX_SHOWN_LOCATIONS = 5
"""Files and lines of each kind in a warning."""


def add_recital(
    report: ComparisonReport,
    model: "PeftModel",
    prepared: PreparedRun,
    plan: Plan,
    audit: AuditReport,
    run: RunFolder,
    steps: int,
) -> ComparisonReport:
    """Measure the recital after `steps` steps, show it, and write it into the comparison of the run.

    A run that measures none, or has nothing to complete, keeps its comparison.
    """
    trained_dialogues = steps * plan.training.effective_batch_size
    count = plan.evaluation.count_recital_replies(count_parameters(model).all_parameters, trained_dialogues)
    if not count:
        return report
    try:
        recital = measure_recital(model, prepared, plan.audit, audit, count, plan.training.seed)
    except (DataError, IntegrityError) as error:  # the cache of encoded data was deleted or damaged during training
        logger.warning(f"Recital was not measured: {first_line(error)}")
        return report
    if recital is None:
        return report
    logger.info(format_recital(recital))
    if recital.findings:
        logger.warning(_format_warning(recital))
    report = replace(report, recital=recital)
    run.write_json(run.comparison, report.as_dict())
    return report


def measure_recital(
    model: "PeftModel", prepared: PreparedRun, policy: AuditSection, audit: AuditReport, count: int, seed: int
) -> RecitalReport | None:
    """Return how many of `count` training replies, and of the values that the audit found, both models complete.

    None if the training data has no reply that is long enough and no such value.
    """
    tokenizer = prepared.tokenizer
    kinds = frozenset(kind for kind in SENSITIVE_KINDS if policy.action(kind) != "ignore")
    replies = choose_replies(prepared.train, tokenizer, prepared.stop_ids, count, seed)
    values = _find_values(prepared, audit, kinds)
    if not replies and not values:
        return None
    logger.info(f"Measuring recital: {len(replies)} training replies, {len(values)} secrets and personal data")
    base, adapted = complete_rows(model, [*(reply.make_row() for reply in replies), *(value.row for value in values)])
    only_adapted, n = adapted & ~base, len(replies)
    recited = [reply for reply, is_new in zip(replies, only_adapted[:n], strict=True) if is_new]
    findings = [value.finding for value, is_new in zip(values, only_adapted[n:], strict=True) if is_new]
    findings += [finding for reply in recited for finding in _find_recited_values(reply, tokenizer, kinds)]
    return RecitalReport(
        replies=n,
        base=int(base[:n].sum()),
        adapted=int(adapted[:n].sum()),
        only_adapted=len(recited),
        values=len(values),
        findings=tuple(sorted(set(findings), key=lambda f: (f.kind, f.path, f.line)))[:MAX_FINDINGS],
    )


def read_stored_recital(run: RunFolder) -> RecitalReport | None:
    """Return the recital that training measured; None if it measured none, or if the file is damaged."""
    if not run.comparison.is_file():
        return None
    try:
        return read_recital(run.read_comparison().get("recital"))
    except (ValueError, IntegrityError):
        logger.warning(f"The recital in {display_path(run.comparison)} is damaged and is left out.")
        return None


@dataclass(frozen=True)
class _Value:
    """A secret or personal data within a training reply, with everything before it as the prompt."""

    finding: RecitedValue
    row: EncodedDialogue


def _find_values(prepared: PreparedRun, audit: AuditReport, kinds: frozenset[FindingKind]) -> list[_Value]:
    """Return the values in trained replies at the locations that the audit lists, each value once."""
    locations = {(finding.path, finding.line) for finding in audit.findings if finding.kind in kinds}
    if not locations:
        return []
    units = select_units(prepared.train, find_units(prepared.train, locations))
    values: dict[str, _Value] = {}
    for reply in read_training_replies(units, prepared.tokenizer, prepared.stop_ids):
        for value, match in _list_new_values(reply, prepared.tokenizer, kinds):
            begin, end = _find_tokens(reply, prepared.tokenizer, match)
            if value not in values and reply.prompt + reply.ids[:begin]:
                values[value] = _Value(_make_finding(reply, match), reply.make_row(begin, end))
            if len(values) == _MAX_VALUES:
                return list(values.values())
    return list(values.values())


def _list_new_values(
    reply: TrainingReply, tokenizer: "PreTrainedTokenizerBase", kinds: frozenset[FindingKind]
) -> Iterator[tuple[str, TextMatch]]:
    """Yield the values of a reply that nothing before them contains, because copying those shows nothing."""
    text = tokenizer.decode(reply.ids)
    matches = [match for match in find_sensitive(text) if match.kind in kinds]
    prompt = tokenizer.decode(reply.prompt) if matches else ""
    for match in matches:
        value = text[match.start : match.end]
        if value not in prompt and value not in text[: match.start]:
            yield value, match


def _find_tokens(reply: TrainingReply, tokenizer: "PreTrainedTokenizerBase", match: TextMatch) -> tuple[int, int]:
    """Return the first token of a match in a reply, and the token after it."""
    counts = range(len(reply.ids) + 1)

    def length(count: int) -> int:
        return len(tokenizer.decode(reply.ids[:count]))

    return bisect_right(counts, match.start, key=length) - 1, bisect_left(counts, match.end, key=length)


def _find_recited_values(
    reply: TrainingReply, tokenizer: "PreTrainedTokenizerBase", kinds: frozenset[FindingKind]
) -> Iterator[RecitedValue]:
    """Yield the values within the expected part of a reply."""
    begin = len(tokenizer.decode(reply.ids[: reply.given_tokens]))
    end = len(tokenizer.decode(reply.ids[: reply.given_tokens + CONTINUED_TOKENS]))
    for _, match in _list_new_values(reply, tokenizer, kinds):
        if match.end > begin and match.start < end:
            yield _make_finding(reply, match)


def _make_finding(reply: TrainingReply, match: TextMatch) -> RecitedValue:
    """Return the kind of a match and its location, without its text."""
    return RecitedValue(kind=match.kind, path=reply.path, line=reply.line)


def _format_warning(recital: RecitalReport) -> str:
    """Format the kinds and locations of values that the adapter recites, without their text."""
    parts, settings = [], []
    for kind in SENSITIVE_KINDS:
        places = [f"{display_path(Path(f.path))}:{f.line}" for f in recital.findings if f.kind == kind]
        if places:
            more = f" and {len(places) - _MAX_SHOWN_LOCATIONS} more" if len(places) > _MAX_SHOWN_LOCATIONS else ""
            settings.append(f"--set audit.{kind}=redact")
            parts.append(f"{finding_title(kind)} ({', '.join(places[:_MAX_SHOWN_LOCATIONS])}{more})")
    return (
        f"WARNING: the adapter recites {' and '.join(parts)} of its training data, and the base does not. Whoever gets "
        f"the adapter can read them out of it.\nFix: replace them by marks ({' '.join(settings)}) or leave them out, "
        "and train again."
    )
