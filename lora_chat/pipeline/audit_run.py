"""The audit of a prepared run, and the run without the dialogues that the audit leaves out."""

from collections.abc import Sequence
from dataclasses import replace

from lora_chat.audit.format import format_left_out
from lora_chat.audit.report import AuditReport
from lora_chat.config.plan import Plan
from lora_chat.data.dataset import DialogueSet, leave_out_units
from lora_chat.data.dialogue import Dialogue
from lora_chat.errors import RefusedDataError
from lora_chat.evaluation.general.selection import SHIPPED_NAME
from lora_chat.evaluation.questions import Question
from lora_chat.pipeline.audit_data import audit_sets
from lora_chat.pipeline.prepare import PreparedRun
from lora_chat.planning.workload import check_warmup


def audit_run(prepared: PreparedRun, plan: Plan) -> tuple[PreparedRun, AuditReport]:
    """Audit the data, the questions and the chat template of a run.

    Return the run without the dialogues that the recipe drops, and the report on all of them. Raises DataError if no
    training, validation or test dialogue is left.
    """
    report = audit_sets(
        prepared.train,
        prepared.validation,
        prepared.tokenizer,
        plan.audit,
        questions=[*prepared.questions, *_list_general_texts(prepared)],
        template=plan.data.template,
        test=prepared.test,
    )
    return (_leave_out(prepared, report, plan), report) if report.left_out else (prepared, report)


def _list_general_texts(prepared: PreparedRun) -> list[Question]:
    """Return the texts of the user's general items as questions."""
    items = prepared.general.items if prepared.general and prepared.general.name != SHIPPED_NAME else ()
    return [Question(item.prompt, tuple(item.texts[1:]), item.path, item.line) for item in items]


def _leave_out(prepared: PreparedRun, report: AuditReport, plan: Plan) -> PreparedRun:
    """Return the run without the dropped dialogues, with its statistics and its shared system message."""
    remaining, first = [], 0
    named_sets = ((prepared.train, "training"), (prepared.validation, "validation"), (prepared.test, "test"))
    for dialogues, name in named_sets:
        end = first + len(dialogues)
        numbers = [number - first for number in report.left_out if first <= number < end]
        remaining.append(_remaining(dialogues, numbers, name, report))
        first = end
    train, validation, test = remaining
    check_warmup(len(train.rows), plan.training)
    identity = prepared.identity
    if identity.system is None:
        identity = identity.model_copy(update={"system": _find_shared_system_message(train, validation, test)})
    statistics = prepared.statistics.after_audit(train, validation, test, report.dropped)
    return replace(prepared, train=train, validation=validation, test=test, identity=identity, statistics=statistics)


def _remaining(dialogues: DialogueSet, numbers: Sequence[int], name: str, report: AuditReport) -> DialogueSet:
    """Return a set without the units with these numbers."""
    if not numbers:
        return dialogues
    if len(numbers) == len(dialogues):
        kinds = ", ".join(f"audit.{kind}=warn" for kind in report.dropped)
        raise RefusedDataError(
            f"The audit leaves out all {len(numbers):,} {name} dialogues (of {format_left_out(report.dropped)}). "
            f"Fix: edit the dialogues, or do not drop them (--set {kinds.replace(', ', ' --set ')})."
        )
    return leave_out_units(dialogues, numbers)


def _find_shared_system_message(*sets: DialogueSet) -> str | None:
    """Return the system message with which all remaining dialogues begin, if any."""
    known = {system for dialogues in sets for store, _ in dialogues.units_by_store for system in store.ledger.systems}
    if known == {None}:  # no dialogue has a system message, so none is read
        return None
    shared: set[str | None] = set()
    for unit in (unit for dialogues in sets for unit in dialogues.read()):
        first = unit.messages[0] if isinstance(unit, Dialogue) else None
        shared.add(first.content if first and first.role == "system" else None)
        if len(shared) > 1:
            return None
    return shared.pop() if shared else None
