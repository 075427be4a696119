"""The audit of training, validation and test data, questions and chat template, cached like encoded dialogues."""

import hashlib
import json
import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import TypeAdapter

from lora_chat.audit.auditor import Auditor
from lora_chat.audit.redactor import AUDIT_CODE_PATHS
from lora_chat.audit.report import SPLITS, AuditReport
from lora_chat.config.audit import AuditSection
from lora_chat.data.dataset import DialogueSet
from lora_chat.data.dialogue import Dialogue, Message
from lora_chat.data.encoding.control_tokens import read_control_tokens
from lora_chat.errors import LoraChatError
from lora_chat.evaluation.questions import Question
from lora_chat.system.atomic_write import write_text_atomically
from lora_chat.system.bounded_files import MAX_LOG_BYTES, read_bytes
from lora_chat.system.cache_dir import cache_dir
from lora_chat.system.hashing import digest_code

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

_PROGRESS_INTERVAL_SECONDS = 5.0
CODE_PATHS = (*AUDIT_CODE_PATHS, Path(__file__))
"""All code that decides the report of a run. A test checks that it is complete."""
_REPORT_ADAPTER = TypeAdapter(AuditReport)


def audit_sets(
    train: DialogueSet,
    validation: DialogueSet,
    tokenizer: "PreTrainedTokenizerBase",
    policy: AuditSection,
    questions: Sequence[Question] = (),
    template: str | None = None,
    test: DialogueSet | None = None,
) -> AuditReport:
    """Audit all sets, the questions and the chat template, or return the cached report for the same data.

    `template` is the path of the template; None means the base's own.
    """
    tokens = read_control_tokens(tokenizer)
    chat_template = str(tokenizer.chat_template or "")
    question_texts = [(q.path, q.line, text) for q in questions for text in (q.question, *q.accept)]
    sets = (train, validation) if test is None else (train, validation, test)
    key = _cache_key(sets, tokens, policy, [question_texts, chat_template, template])
    cache_path = cache_dir("audits") / f"{key}.json"
    with suppress(OSError, ValueError, LoraChatError):  # a damaged cache entry is replaced
        cached = _REPORT_ADAPTER.validate_json(read_bytes(cache_path, MAX_LOG_BYTES))
        if {finding.kind for finding in cached.findings} == {
            kind for kind, count in cached.counts.items() if count > 0
        } and _has_valid_numbers(cached, sum(map(len, sets))):
            return cached
    auditor = Auditor(policy, tokens)
    last_message = time.monotonic()
    for dialogues, split in zip(sets, SPLITS, strict=False):
        for number, dialogue in enumerate(_iter_dialogues(dialogues, tokenizer), 1):
            auditor.add(dialogue, split)
            if time.monotonic() - last_message > _PROGRESS_INTERVAL_SECONDS:
                last_message = time.monotonic()
                logger.info(f"Auditing the {split} dialogues: {number:,} of {len(dialogues):,}")
    for path, line, text in question_texts:
        auditor.add_text(text, path, line)
    for line, text in enumerate(chat_template.split("\n"), 1):
        auditor.add_code(text, template or "the base's chat template", line)
    report = auditor.report()
    with suppress(OSError, LoraChatError):  # without the cache entry, the next audit runs again
        write_text_atomically(cache_path, json.dumps(asdict(report), ensure_ascii=False), "the cached audit")
    return report


def _has_valid_numbers(report: AuditReport, dialogues: int) -> bool:
    """Return whether the dialogues that a cached report leaves out exist, in order, in the number that it states."""
    numbers = report.left_out
    return len(numbers) == sum(report.dropped.values()) and all(
        0 <= number < dialogues and (not index or numbers[index - 1] < number) for index, number in enumerate(numbers)
    )


def _iter_dialogues(dialogues: DialogueSet, tokenizer: "PreTrainedTokenizerBase") -> Iterator[Dialogue]:
    """Yield the dialogues of a set; a block of plain text is one reply."""
    for path, line, dialogue, rows in dialogues.iter_units():
        if dialogue is None:
            text = tokenizer.decode(rows[0].input_ids, skip_special_tokens=True)
            yield Dialogue((Message("assistant", text),), line, path=path)
        else:
            yield replace(dialogue, path=path)


def _cache_key(sets: Sequence[DialogueSet], tokens: tuple[str, ...], policy: AuditSection, more: object) -> str:
    """Return the cache key: a digest of the data, the policy and the code of the audit."""
    parts: list[object] = [tokens, policy.model_dump(), digest_code(*CODE_PATHS), more]
    for dialogues in sets:
        parts += [
            [store.folder.name, hashlib.sha256(units.tobytes()).hexdigest()]
            for store, units in dialogues.units_by_store
        ]
        parts.append("|")
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:40]
