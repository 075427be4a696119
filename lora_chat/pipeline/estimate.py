"""The estimate of a recipe or run, for this machine or another GPU, before weights load."""

import logging
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING

from lora_chat.config.plan import Plan, make_plan
from lora_chat.config.recipe import BaseSection, Recipe
from lora_chat.config.sizes import parse_size
from lora_chat.data.encoding.chat_template import install_template
from lora_chat.data.lengths import DataLengths, measure_rows
from lora_chat.errors import ConsentError, DataError, OutOfMemoryError, RecipeError, UsageError
from lora_chat.models.base_config import BaseConfig, find_base_config
from lora_chat.models.base_model import LocalBase, find_base, load_tokenizer
from lora_chat.models.bundled import bundled_base_names
from lora_chat.models.shape import ModelShape
from lora_chat.models.stop_tokens import read_stop_ids
from lora_chat.pipeline.base_precision import adopt_planned_base
from lora_chat.pipeline.choose_thinking import configure_thinking
from lora_chat.pipeline.data_lengths import measure_lengths
from lora_chat.pipeline.general_items import choose_general_set
from lora_chat.pipeline.install_tokens import install_recipe_tokens
from lora_chat.pipeline.load_data import find_data_files, read_data
from lora_chat.pipeline.machine_benchmark import MIN_BASE_WEIGHTS, benchmark_machine
from lora_chat.pipeline.model_shape import count_selected_parameters, find_shape
from lora_chat.pipeline.parent import Parent
from lora_chat.pipeline.parent_settings import complete_recipe, install_parent_template
from lora_chat.pipeline.prepare import PreparedRun
from lora_chat.pipeline.run_identity import is_acceptable_change
from lora_chat.pipeline.shard_choice import with_sharding
from lora_chat.planning.calibration import calibrate
from lora_chat.planning.card_links import find_card_link
from lora_chat.planning.card_table import CardTable, list_layouts, make_card_table
from lora_chat.planning.choose_sharding import choose_sharding
from lora_chat.planning.device import TargetDevice
from lora_chat.planning.estimate import RunEstimate, make_estimate
from lora_chat.planning.format import format_refusal
from lora_chat.planning.gpu_specs import find_gpu_spec, target_from_gpu_spec, target_from_memory_size
from lora_chat.planning.local_device import detect_local_device, measure_cpu_speed
from lora_chat.planning.measured_shape import MeasuredShape
from lora_chat.planning.process_layout import ONE_PROCESS, ProcessLayout, can_shard
from lora_chat.planning.process_time import GRADIENT_BYTES
from lora_chat.planning.settings_search import PlanningProblem, choose_plan, memory_config_from_plan
from lora_chat.planning.validation import resolve_validation
from lora_chat.planning.workload import check_warmup
from lora_chat.processes.group import current_group
from lora_chat.runs.run_folder import RunFolder
from lora_chat.system.hardware import Hardware, describe_cpu, detect_hardware

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)


def resolve_plan(
    plan: Plan, prepared: PreparedRun, earlier: RunFolder | None, reading_seconds: float
) -> tuple[Plan, RunEstimate | None]:
    """Choose all open settings of a plan, and return it with its estimate.

    The estimate is None only with `training.memory: unlimited`, for a base that cannot be planned. A resumed run keeps
    its settings. `reading_seconds` is the time of reading the data. Raises OutOfMemoryError if the run does not fit.
    """
    if earlier:
        plan = _keep_earlier_settings(plan, earlier.read_plan())
    plan = resolve_validation(plan, measure_rows(prepared.train.rows), measure_rows(prepared.validation.rows))
    try:
        estimate = estimate_run(plan, prepared, reading_seconds)
    except RecipeError as error:
        if plan.training.memory != "unlimited":
            raise
        logger.info(f"No estimate: {error}")
        return with_sharding(plan, shard=plan.base.shard is True), None
    if plan.training.memory != "unlimited" and estimate.verdict == "does not fit":
        raise OutOfMemoryError(format_refusal(estimate) + (_advise_acceptance(estimate) if earlier else ""))
    return estimate.plan, estimate


def _advise_acceptance(estimate: RunEstimate) -> str:
    """Return the advice to accept the suggested change, because a resumed run keeps its settings."""
    settings = estimate.suggestion.settings if estimate.suggestion else ()
    fields = [field for field in (setting.split("=")[0] for setting in settings) if is_acceptable_change(field)]
    return "\nTo continue with the change, add " + " ".join(f"--accept-change {f}" for f in fields) if fields else ""


def _keep_earlier_settings(plan: Plan, earlier: Plan) -> Plan:
    """Return the plan with the settings that were chosen for the run before it was resumed."""
    settings = {name: getattr(earlier.training, name) for name in plan.open_settings}
    if "micro_batch_size" in settings:
        settings["gradient_accumulation_steps"] = earlier.training.gradient_accumulation_steps
    if earlier.training.effective_batch_size != plan.training.effective_batch_size:
        return plan  # another run, which `check_same_run` refuses
    if plan.evaluation.each_epoch == "auto":
        evaluation = plan.evaluation.model_copy(update={"each_epoch": earlier.evaluation.each_epoch})
        plan = plan.model_copy(update={"evaluation": evaluation})
    training = plan.training.model_copy(update=settings)
    return plan.model_copy(update={"training": training, "open_settings": ()})


def estimate_recipe(recipe: Recipe, gpu: str | None, memory: str | None) -> RunEstimate:
    """Estimate a recipe for a GPU by name, for a GPU with this much memory, or for this machine."""
    return next(_estimate_layouts(recipe, gpu, memory, [ONE_PROCESS]))


def estimate_cards(recipe: Recipe, gpu: str | None, memory: str | None, cards: int) -> CardTable:
    """Estimate a recipe for 1 to `cards` cards of this kind. Raise UsageError if this machine's card is meant but none
    is used."""
    target, _ = find_target(gpu, memory, recipe.base.device)
    if target.device == "cpu":
        raise UsageError(
            f"--gpus {cards}: this machine would train on its CPU, so the kind of card is unknown. "
            'Fix: name it, such as --gpu "RTX 4090", or leave out --gpus to plan for this CPU.'
        )
    link = find_card_link(target)
    estimates = list(_estimate_layouts(recipe, gpu, memory, list_layouts(cards, link)))
    return make_card_table(link, GRADIENT_BYTES * estimates[0].trainable_parameters, estimates)


def _estimate_layouts(
    recipe: Recipe, gpu: str | None, memory: str | None, layouts: Iterable[ProcessLayout]
) -> Iterator[RunEstimate]:
    """Yield the estimate of a recipe for each layout of processes."""
    recipe, parent = complete_recipe(recipe)
    target, hardware = find_target(gpu, memory, recipe.base.device)
    plan = make_plan(recipe, hardware)
    base = find_base_config(plan.base)
    plan = adopt_planned_base(plan, base, hardware)
    shape = find_shape(plan, base)
    trained_parameters = count_selected_parameters(plan, base, shape)
    started = time.monotonic()
    data = read_lengths(plan, base, shape, parent)
    plan = resolve_validation(plan, data.train, data.validation)
    reading_seconds = time.monotonic() - started
    for layout in layouts:
        if layout.sharded and not can_shard(plan):
            continue
        problem = PlanningProblem(shape, data, target, trained_parameters, layout)
        # The cards are compared as they are; only the first estimate is shown in full.
        is_first = layout.count == 1
        yield estimate_plan(plan, problem, base, reading_seconds, allow_slow=False, suggest=is_first)


def estimate_run(plan: Plan, prepared: PreparedRun, reading_seconds: float) -> RunEstimate:
    """Estimate a run whose data was read in `reading_seconds`, for this machine and the processes of this run."""
    base = find_base_config(plan.base)
    shape = find_shape(plan, base)
    data = measure_lengths(
        plan,
        prepared.train,
        prepared.validation,
        prepared.questions,
        prepared.identity.system,
        prepared.tokenizer,
        prepared.general,
        test=prepared.test,
    )
    group = current_group()
    target = detect_local_device(detect_hardware(plan.base.device), group.rank.local_size)
    layout = ProcessLayout(group.size, find_card_link(target)) if group.size > 1 else ONE_PROCESS
    trained_parameters = count_selected_parameters(plan, base, shape)
    problem = PlanningProblem(shape, data, target, trained_parameters, layout)
    plan, problem = _resolve_sharding(plan, problem)
    return estimate_plan(plan, problem, base, reading_seconds, allow_slow=True)


def _resolve_sharding(plan: Plan, problem: PlanningProblem) -> tuple[Plan, PlanningProblem]:
    """Return the plan with `base.shard` true or false, and the problem of its processes."""
    sharded = plan.base.shard is True
    if plan.base.shard == "auto" and plan.training.memory != "unlimited":
        sharded = choose_sharding(plan, _limit_memory(plan, problem))
        if sharded:
            logger.info("The base does not fit one card, so the processes shard it (base.shard).")
    layout = replace(problem.layout, sharded=sharded and problem.layout.count > 1)
    return with_sharding(plan, shard=layout.sharded), replace(problem, layout=layout)


def _limit_memory(plan: Plan, problem: PlanningProblem) -> PlanningProblem:
    """Return the problem with the memory that the plan may use."""
    memory = plan.training.memory
    if memory in ("auto", "unlimited"):
        return problem
    return replace(problem, target=problem.target.with_memory_limit(parse_size(memory, "training.memory")))


def estimate_plan(
    plan: Plan,
    problem: PlanningProblem,
    base: BaseConfig,
    reading_seconds: float,
    *,
    allow_slow: bool,
    suggest: bool = True,
    cached_benchmark: bool = False,
) -> RunEstimate:
    """Choose the open settings, benchmark this machine if it is the target, and estimate the plan.

    With `cached_benchmark`, only an earlier benchmark is used, because a new one takes half a minute.
    """
    memory = plan.training.memory
    problem = _limit_memory(plan, problem)
    if memory != "unlimited":
        plan = choose_plan(plan, problem, problem.target.limit)
    benchmark = None
    if memory != "unlimited" and not isinstance(problem.shape, MeasuredShape):
        benchmark = benchmark_machine(
            plan, problem, base.config, base.folder, allow_slow=allow_slow, cached_only=cached_benchmark
        )
    if benchmark:
        config = memory_config_from_plan(plan, problem.shape)
        problem = replace(problem, target=calibrate(problem.target, benchmark, problem.shape, config))
        plan = choose_plan(plan, problem, problem.target.limit)
    elif problem.target.speed is None and problem.target.at_hand and problem.shape.weights > MIN_BASE_WEIGHTS:
        problem = replace(problem, target=measure_cpu_speed(problem.target))
    if isinstance(problem.shape, MeasuredShape) or (
        plan.precision.dtype == "float32" and problem.target.device == "cuda"
    ):
        # Only bytes are measured on the model without weights, and the operations of experts and scans are unknown.
        # The speed of a GPU is known in 16 bits only: it is enough to compare plans, and wrong for their time.
        problem = replace(problem, target=replace(problem.target, speed=None))
    return make_estimate(
        plan,
        problem,
        base=base.name,
        origin=base.origin,
        weight_bytes=base.weight_bytes,
        download_bytes=base.download_bytes,
        benchmark=benchmark,
        reading_seconds=reading_seconds,
        suggest=suggest,
    )


def find_target(gpu: str | None, memory: str | None, device: str) -> tuple[TargetDevice, Hardware]:
    """Return the target device and its hardware."""
    if gpu:
        target = target_from_gpu_spec(find_gpu_spec(gpu))
    elif memory:
        target = target_from_memory_size(parse_size(memory, "--memory"))
    else:
        hardware = detect_hardware(device)
        return detect_local_device(hardware), hardware
    threads = describe_cpu().threads
    return target, Hardware(
        "cuda", target.name, target.memory, target.bfloat16, threads, index=0, capability=target.capability
    )


def open_planned_tokenizer(
    plan: Plan, base: BaseConfig, parent: Parent | None = None
) -> tuple["PreTrainedTokenizerBase", tuple[int, ...]]:
    """Return the tokenizer of a base, or the embedded one if it is missing, ready to encode, and its stop tokens."""
    tokenizer_base = (
        LocalBase(base.name, base.folder) if base.folder else find_base(BaseSection(name=bundled_base_names()[0]))
    )
    tokenizer = load_tokenizer(tokenizer_base)
    install_template(tokenizer, plan.data.template)
    stop_ids = read_stop_ids(tokenizer_base, tokenizer)
    if parent is not None and base.folder and plan.data.template is None:
        with suppress(ConsentError):  # lengths with the base's template are good enough
            install_parent_template(parent, tokenizer, accept=False)
            stop_ids = read_stop_ids(tokenizer_base, tokenizer)
    if base.folder is not None:  # the embedded tokenizer lacks the tokens
        install_recipe_tokens(plan, tokenizer, stop_ids)
    with suppress(DataError):  # the template of the embedded tokenizer has no switch
        configure_thinking(tokenizer, plan.data.thinking, stop_ids, parent.stored.identity if parent else None)
    return tokenizer, tuple(stop_ids)


def read_lengths(plan: Plan, base: BaseConfig, shape: ModelShape, parent: Parent | None = None) -> DataLengths:
    """Return the lengths of the data, in tokens of the base's tokenizer, or of the embedded one if it is missing."""
    files = find_data_files(plan)
    tokenizer, stop_ids = open_planned_tokenizer(plan, base, parent)
    data = read_data(plan, files, tokenizer, stop_ids, shape.max_positions)
    check_warmup(len(data.train.rows), plan.training)
    return measure_lengths(
        plan,
        data.train,
        data.validation,
        files.questions,
        data.system,
        tokenizer,
        choose_general_set(
            plan.evaluation.general, files.general, tokenizer, weights=shape.weights, positions=shape.max_positions
        ),
        is_estimated=base.folder is None,
        test=data.test,
    )
