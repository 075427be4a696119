"""All that a run needs before the weights: tokenizer, dialogues read, checked and encoded, questions."""

import resource
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lora_chat.console import shown
from lora_chat.dialogues.chat_template import install_template
from lora_chat.dialogues.dialogue import Dialogue
from lora_chat.dialogues.encoding import EncodedDialogue, EncodingReport, encode_dialogues
from lora_chat.dialogues.reading import ReadingReport, read_dialogues, split_dialogues
from lora_chat.evaluation.scores import Question, read_questions
from lora_chat.models.adapter import check_targets_exist, read_identity
from lora_chat.models.base_model import (
    FoundBase,
    find_base,
    load_skeleton,
    load_tokenizer,
    read_positions,
    read_stop_ids,
)
from lora_chat.models.identity import Identity, identify
from lora_chat.planning.plan import Plan
from lora_chat.run_folder import RunFolder

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Prepared:
    """Everything but weights."""

    base: FoundBase
    tokenizer: "PreTrainedTokenizerBase"
    identity: Identity
    """What the adapter belongs to, with the system message it was trained under."""
    stop_ids: tuple[int, ...]
    train_rows: Sequence[EncodedDialogue]
    reading: ReadingReport | None
    train_report: EncodingReport | None
    validation: Sequence[Dialogue]
    validation_rows: Sequence[EncodedDialogue]
    questions: Sequence[Question]

    def write_held_out(self, run: RunFolder) -> None:
        """Keep what the run is measured with inside the run."""
        run.write_lines(run.validation, [d.as_row for d in self.validation])
        if self.questions:
            run.write_lines(run.questions, [{"question": q.question, "accept": q.accept} for q in self.questions])


def prepare(plan: Plan, notice: Callable[[str], None]) -> Prepared:
    """Read and encode everything a plan names; every fault in the data is raised here."""
    data = plan.data
    columns = data.columns.model_dump(exclude_none=True) if data.columns else None
    dialogues, read = read_dialogues(data.train, data.skip_bad, data.format, columns)
    if data.validation:
        train = dialogues
        validation, _ = read_dialogues(data.validation, data.skip_bad, data.format, columns)
    else:
        train, validation = split_dialogues(dialogues, data.validation_share, data.seed)
    questions = read_questions(plan.evaluation.questions) if plan.evaluation.questions else []
    base, tokenizer, stop_ids = open_base(plan, notice)
    if plan.adapter.target_modules != "all-linear":
        check_targets_exist(load_skeleton(base), plan.adapter.target_modules)
    limits = (plan.data.max_length, plan.data.over_long)
    positions = read_positions(base)
    train_rows, report = encode_dialogues(train, tokenizer, stop_ids, *limits, positions)
    validation_rows, _ = encode_dialogues(validation, tokenizer, stop_ids, *limits, positions)
    return Prepared(
        base=base,
        tokenizer=tokenizer,
        identity=identify(base, tokenizer).model_copy(update={"system": shared_system(train)}),
        stop_ids=stop_ids,
        train_rows=train_rows,
        reading=read,
        train_report=report,
        validation=validation,
        validation_rows=validation_rows,
        questions=questions,
    )


def prepare_held_out(plan: Plan, run: RunFolder, notice: Callable[[str], None]) -> Prepared:
    """What `eval` needs of a finished run, from the run's folder alone."""
    validation, _ = read_dialogues(run.validation)
    questions = read_questions(str(run.questions)) if run.questions.is_file() else []
    base, tokenizer, stop_ids = open_base(plan, notice)
    limits = (plan.data.max_length, plan.data.over_long)
    positions = read_positions(base)
    rows, _ = encode_dialogues(validation, tokenizer, stop_ids, *limits, positions)
    return Prepared(
        base=base,
        tokenizer=tokenizer,
        identity=read_identity(run.adapter) or identify(base, tokenizer),
        stop_ids=stop_ids,
        train_rows=(),
        reading=None,
        train_report=None,
        validation=validation,
        validation_rows=rows,
        questions=questions,
    )


def open_base(
    plan: Plan, notice: Callable[[str], None]
) -> "tuple[FoundBase, PreTrainedTokenizerBase, tuple[int, ...]]":
    """Base, tokenizer with a chat template, and stop ids."""
    base = find_base(plan.base, notice)
    tokenizer = load_tokenizer(base)
    install_template(tokenizer)
    return base, tokenizer, read_stop_ids(base, tokenizer)


def shared_system(dialogues: Sequence[Dialogue]) -> str | None:
    """The system message that all dialogues begin with; chat then begins with it too."""
    heads = {d.messages[0].content if d.messages[0].role == "system" else None for d in dialogues}
    return heads.pop() if len(heads) == 1 else None


def summary(plan: Plan, prepared: Prepared, run: RunFolder) -> str:
    """The short plan, printed before the weights load."""
    report, training = prepared.train_report, plan.training
    lines = [
        f"Run       {shown(run.path)}",
        f"Base      {prepared.base.name}, {plan.precision.mode}, {plan.precision.dtype}, on {plan.precision.device}",
    ]
    if prepared.reading:
        lines.append(_sources(prepared.reading))
    if report:
        dropped = f", {report.dropped} too long and left out" if report.dropped else ""
        lines.append(
            f"Dialogues {report.dialogues} to train on, {len(prepared.validation)} held out{dropped}; "
            f"longest {report.longest} tokens; loss on {report.supervised_tokens:,} of {report.tokens:,} tokens"
        )
        if report.rows > report.dialogues:
            lines.append(
                f"Rows      {report.rows}, one for each reply: this chat template rewrites earlier turns, "
                "and each reply is trained behind what inference will show it"
            )
    if prepared.identity.system is not None:
        lines.append(f"System    {prepared.identity.system}")
    length = f"{training.max_steps} steps" if training.max_steps else f"{training.epochs:g} epochs"
    lines.append(
        f"Training  {length}, {training.effective_batch_size} dialogues a step "
        f"({training.gradient_accumulation_steps} x {training.micro_batch_size}), "
        f"learning rate {training.learning_rate:g}"
    )
    return "\n".join(lines)


def _sources(reading: ReadingReport) -> str:
    """The file and its format, or how many there are."""
    formats = ", ".join(sorted({form for _, form in reading.files}))
    name = shown(Path(reading.files[0][0])) if len(reading.files) == 1 else f"{len(reading.files)} files"
    left_out = f", {reading.refused} faulty left out" if reading.refused else ""
    return f"Data      {name}, {formats}: {reading.lines} lines, {reading.accepted} dialogues{left_out}"


def peak_memory_bytes() -> int:
    """Most memory held so far: of the GPU where one is used, else of this process."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
