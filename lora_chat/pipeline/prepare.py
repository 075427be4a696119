"""Everything that a run needs before weights load: tokenizer, encoded dialogues and questions."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_chat.config.adapter_section import AdapterSection
from lora_chat.config.data import DataSection
from lora_chat.config.lora_variants import find_initialization
from lora_chat.config.plan import Plan, PrecisionPlan
from lora_chat.data.dataset import DialogueSet, build_block_set, build_empty_set, build_full_set, concatenate_sets
from lora_chat.data.dialogue import Dialogue
from lora_chat.data.encoding.chat_template import install_template
from lora_chat.data.encoding.control_tokens import depends_on_token_rule, read_kept_tokens
from lora_chat.data.encoding.ordinary_tokens import LAST_RULE
from lora_chat.data.format import statistics_summary
from lora_chat.data.sources import find_sources, open_sources
from lora_chat.data.statistics import DataStatistics
from lora_chat.errors import IntegrityError, RecipeError
from lora_chat.evaluation.general.selection import GeneralSet
from lora_chat.evaluation.overlap import OverlapReport
from lora_chat.evaluation.questions import Question, read_questions
from lora_chat.evaluation.verdict import EvaluatedSet
from lora_chat.models.adapter import check_adapter_attaches
from lora_chat.models.base_model import (
    LocalBase,
    check_weights,
    find_base,
    is_base_local,
    load_tokenizer,
    read_max_positions,
)
from lora_chat.models.bound_adapter import BoundAdapter
from lora_chat.models.experts import format_expert_note
from lora_chat.models.identity import Identity, compute_identity
from lora_chat.models.stop_tokens import read_stop_ids
from lora_chat.models.token_rows import resolve_token_ids
from lora_chat.pipeline.base_precision import plan_base_precision
from lora_chat.pipeline.choose_thinking import configure_thinking, decide_default, describe_thinking
from lora_chat.pipeline.general_items import choose_general_set
from lora_chat.pipeline.install_tokens import install_recipe_tokens, read_new_tokens
from lora_chat.pipeline.load_data import find_data_files, read_data
from lora_chat.pipeline.parent import Parent
from lora_chat.pipeline.parent_settings import (
    check_parent_base,
    check_parent_tokenizer,
    format_start,
    install_parent_template,
)
from lora_chat.planning.workload import check_warmup
from lora_chat.runs.run_folder import RunFolder
from lora_chat.system.console import display_path
from lora_chat.system.sanitize import sanitize_line

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

_EVALUATION_MAX_LENGTH = 2048
"""Maximum tokens of a dialogue in the user's evaluation file; tokens after that are not evaluated."""


@dataclass(frozen=True)
class PreparedEvaluation:
    """Everything that an evaluation needs except weights."""

    base: LocalBase
    tokenizer: "PreTrainedTokenizerBase"
    identity: Identity
    """Identity of the base, with the system message of training."""
    stop_ids: tuple[int, ...]
    validation: DialogueSet
    test: DialogueSet
    questions: Sequence[Question]
    is_user_data: bool = False
    """Whether the dialogues are a file that the user named for this evaluation, which is in `validation`."""
    overlap: OverlapReport | None = None
    """How many of the compared dialogues were trained on; None if it is unknown."""
    general: GeneralSet | None = None
    """General items that both models are asked; a planner may take a part of them."""

    @property
    def compared(self) -> DialogueSet:
        """Return the dialogues on which base and adapted model are compared: the test set if there is one."""
        return self.test if len(self.test) else self.validation

    @property
    def compared_name(self) -> EvaluatedSet:
        """Return the name of the compared set."""
        return "given" if self.is_user_data else "test" if len(self.test) else "validation"

    @property
    def parity_dialogues(self) -> DialogueSet:
        """Return the dialogues of a parity check: the validation set if there is one, else the test set."""
        return self.validation if len(self.validation) else self.test

    def write_held_out(self, run: RunFolder) -> None:
        """Write validation data, test data and questions into the run."""
        _write_dialogues(run, self.validation, run.validation, run.validation_blocks)
        _write_dialogues(run, self.test, run.test, run.test_blocks)
        if self.questions:
            run.write_lines(run.questions, ({"question": q.question, "accept": q.accept} for q in self.questions))
        else:
            run.delete(run.questions)
        if self.general:
            run.write_lines(run.general, (item.as_row for item in self.general.items))
        else:
            run.delete(run.general)


def _write_dialogues(run: RunFolder, dialogues: DialogueSet, path: Path, blocks_path: Path) -> None:
    """Write the dialogues of a set and its blocks of plain text into two files of a run."""
    rows = (unit.as_row for unit in dialogues.read() if isinstance(unit, Dialogue))
    blocks = (unit for unit in dialogues.read() if isinstance(unit, list))
    for to, values in ((path, rows), (blocks_path, blocks)):
        first: Any = next(values, None)
        if first is not None:
            run.write_lines(to, chain([first], values))
        else:
            run.delete(to)  # a resumed run may have had other data


@dataclass(frozen=True, kw_only=True)
class PreparedRun(PreparedEvaluation):
    """Everything that a run needs except weights."""

    precision: PrecisionPlan
    """Precision of the base in training, which a base that is quantized already decides itself."""
    train: DialogueSet
    statistics: DataStatistics
    adapter: AdapterSection
    """Adapter of the plan with the ids of the tokens whose rows are trained."""

    @property
    def new_ids(self) -> tuple[int, ...]:
        """Return the ids of the tokens that training adds to the base."""
        return tuple((self.identity.new_tokens or {}).values())

    def write(self, run: RunFolder, *, redacted: bool) -> None:
        """Write validation and test data, questions, statistics, and redacted dialogues into the run."""
        self.write_held_out(run)
        run.write_json(run.statistics, self.statistics.as_dict())
        if redacted:
            run.write_lines(run.redacted, self.read_training_rows())

    def read_training_rows(self) -> Iterator[Mapping[str, object]]:
        """Yield each training dialogue once, as a row of a JSON lines file."""
        for unit in self.train.read():
            yield unit.as_row if isinstance(unit, Dialogue) else {"text": self.tokenizer.decode(unit)}


def prepare_run(plan: Plan, parent: Parent | None = None, *, accept_template: bool = False) -> PreparedRun:
    """Read and encode the data of a plan. Every error in the data is raised here.

    `accept_template` lets the chat template of a parent run that is a stranger's. Raises IntegrityError if the parent
    belongs to another base.
    """
    files = find_data_files(plan)
    if not is_base_local(plan.base):
        files.check()  # before the download, which can take minutes
    base, tokenizer, stop_ids = load_base_tokenizer(plan, plan.data.template)
    precision = plan_base_precision(plan, base)
    if parent is not None:
        check_parent_tokenizer(parent, base, tokenizer)
    if parent is not None and plan.data.template is None:
        install_parent_template(parent, tokenizer, accept=accept_template)
        stop_ids = read_stop_ids(base, tokenizer)
    skeleton = check_weights(base)
    if parent is not None:
        check_parent_base(parent, tokenizer, base, plan)
    if precision.stored and find_initialization(plan.adapter.initialization).fits_residual:
        raise RecipeError(
            f"adapter.initialization: {plan.adapter.initialization} needs the weights before quantization, and the "
            f"files of {base.name} are quantized ({precision.stored.title}). Fix: name the unquantized base."
        )
    new_tokens = read_new_tokens(tokenizer, plan)
    adapter = resolve_token_ids(plan.adapter, tokenizer, new_tokens)
    settings = check_adapter_attaches(skeleton, adapter, tuple(new_tokens.values()))
    if note := format_expert_note(skeleton, plan.adapter, settings.target_modules):
        logger.info(note)
    continued = parent.stored.identity if parent is not None and not parent.is_merged else None
    configure_thinking(tokenizer, plan.data.thinking, stop_ids, continued)
    data = read_data(plan, files, tokenizer, stop_ids, read_max_positions(base))
    thinking = decide_default(tokenizer, data.statistics.total, continued)
    check_warmup(len(data.train.rows), plan.training)
    return PreparedRun(
        base=base,
        tokenizer=tokenizer,
        identity=compute_identity(base, tokenizer).model_copy(
            update={
                "system": data.system,
                "kept_tokens": read_kept_tokens(tokenizer) or None,
                "new_tokens": new_tokens or None,
                "thinking": thinking,
                "token_rule": LAST_RULE if depends_on_token_rule(tokenizer) else None,
            }
        ),
        stop_ids=stop_ids,
        precision=precision,
        train=data.train,
        validation=data.validation,
        test=data.test,
        statistics=replace(data.statistics, thinking=describe_thinking(thinking, data.statistics.total)),
        adapter=adapter,
        questions=files.questions,
        general=choose_general_set(
            plan.evaluation.general,
            files.general,
            tokenizer,
            weights=sum(weight.numel() for weight in skeleton.parameters()),
            positions=read_max_positions(base),
        ),
    )


def prepare_held_out(adapter: BoundAdapter, plan: Plan, run: RunFolder) -> PreparedEvaluation:
    """Read the held-out data and questions of a finished run from its folder. Raise IntegrityError if it is missing."""
    if plan.data.has_validation and not (run.validation.is_file() or run.validation_blocks.is_file()):
        raise IntegrityError(f"{run.validation} is missing: it has the held-out dialogues of the run.")
    if plan.data.has_test and not (run.test.is_file() or run.test_blocks.is_file()):
        raise IntegrityError(f"{run.test} is missing: it has the test dialogues of the run.")
    return prepare_held_out_files(adapter, plan.data.max_length, run)


def prepare_held_out_files(adapter: BoundAdapter, max_length: int | None, run: RunFolder) -> PreparedEvaluation:
    """Read the files of held-out data and questions in a folder. Raise IntegrityError if they are damaged."""
    questions = str(run.questions) if run.questions.is_file() else None
    prepared = prepare_evaluation_files(
        adapter,
        _list_file(run.validation),
        questions,
        max_length=max_length,
        blocks=_read_blocks(run, run.validation_blocks, adapter),
    )
    test = _encode_files(
        adapter, _list_file(run.test), prepared.stop_ids, max_length, _read_blocks(run, run.test_blocks, adapter)
    )
    return replace(prepared, test=test)


def _list_file(path: Path) -> list[str]:
    """Return the path of a file in a list, which is empty if there is no such file."""
    return [str(path)] if path.is_file() else []


def _read_blocks(run: RunFolder, path: Path, adapter: BoundAdapter) -> list[list[int]]:
    """Read the blocks of plain text in a file of a run, if it exists. Raise IntegrityError if it is damaged."""
    blocks = run.read_lines(path) if path.is_file() else []
    if not all(_is_token_block(block, len(adapter.tokenizer)) for block in blocks):
        raise IntegrityError(f"{path} is damaged: each line must be a list of the base's token ids.")
    return blocks


def _is_token_block(value: object, vocabulary: int) -> bool:
    """Return whether a line is a block of token ids of the base, because other ids cause errors on the device."""
    return (
        isinstance(value, list)
        and value != []
        and all(type(token) is int and 0 <= token < vocabulary for token in value)
    )


def prepare_evaluation_files(
    adapter: BoundAdapter,
    files: Sequence[str],
    questions: str | None,
    *,
    max_length: int | None = None,
    blocks: Sequence[list[int]] = (),
) -> PreparedEvaluation:
    """Read and encode evaluation data: files of dialogues, blocks of token ids, and questions."""
    stop_ids = read_stop_ids(adapter.base, adapter.tokenizer)
    return PreparedEvaluation(
        base=adapter.base,
        tokenizer=adapter.tokenizer,
        identity=adapter.stored.identity or compute_identity(adapter.base, adapter.tokenizer),
        stop_ids=stop_ids,
        validation=_encode_files(adapter, files, stop_ids, max_length, blocks),
        test=build_empty_set(),
        questions=read_questions(questions) if questions else [],
    )


def _encode_files(
    adapter: BoundAdapter,
    files: Sequence[str],
    stop_ids: Sequence[int],
    max_length: int | None,
    blocks: Sequence[list[int]],
) -> DialogueSet:
    """Return a set of the dialogues in some files, and of blocks of plain text."""
    positions = read_max_positions(adapter.base)
    sets = []
    for path in files:
        # Long dialogues are cut, because the replies before the limit can still be evaluated.
        data = DataSection(
            train=path, max_length=max_length or _EVALUATION_MAX_LENGTH, over_long="cut", rendered_chats="text"
        )
        opened = open_sources(find_sources(data.train_sources, ""), data, adapter.tokenizer, stop_ids, positions)
        sets.append(build_full_set([source.store for source in opened]))
    if blocks:
        sets.append(build_block_set(list(blocks)))
    return concatenate_sets(sets)


def load_base_tokenizer(
    plan: Plan, template: str | None
) -> "tuple[LocalBase, PreTrainedTokenizerBase, tuple[int, ...]]":
    """Return the base, its tokenizer with a chat template, and the stop ids."""
    base = find_base(plan.base)
    tokenizer = load_tokenizer(base)
    install_template(tokenizer, template)
    stop_ids = read_stop_ids(base, tokenizer)
    install_recipe_tokens(plan, tokenizer, stop_ids)
    return base, tokenizer, stop_ids


def _format_stored(precision: PrecisionPlan) -> str:
    """Format the quantization of a base whose files are quantized."""
    return f" (its files: {precision.stored.title})" if precision.stored else ""


def format_plan_summary(plan: Plan, prepared: PreparedRun, run: RunFolder, parent: Parent | None = None) -> str:
    """Format the short plan that is printed before weights load."""
    training = plan.training
    lines = [
        f"Run       {display_path(run.path)}",
        f"Base      {prepared.base.name}, {plan.precision.mode}{_format_stored(plan.precision)}, "
        f"{plan.precision.dtype}, on {plan.precision.device}",
        *([f"Start     {format_start(plan, parent)}"] if parent else []),
        *statistics_summary(prepared.statistics),
    ]
    if prepared.identity.system is not None:
        lines.append(f"System    {sanitize_line(prepared.identity.system, 300)}")
    length = f"{training.max_steps} steps" if training.max_steps else f"{training.epochs:g} epochs"
    is_limited_by_tokens = training.fast_path and training.micro_batch_tokens
    micro_batches = (
        f"in micro-batches of about {training.micro_batch_tokens:,} tokens"
        if is_limited_by_tokens
        else f"({training.gradient_accumulation_steps} x {training.micro_batch_size})"
    )
    lines.append(
        f"Training  {length}, {training.effective_batch_size} dialogues per step {micro_batches}, "
        f"learning rate {training.learning_rate:g}"
    )
    return "\n".join(lines)
