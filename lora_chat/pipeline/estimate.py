"""Recipe -> forecast: what a run would need here, or on a card that is only imagined. No weights are loaded."""

import time

from lora_chat.config.plan import Plan, make_plan
from lora_chat.config.recipe import BaseSection, Recipe
from lora_chat.config.sizes import parse_size
from lora_chat.data.encoding.chat_template import install_template
from lora_chat.data.lengths import DataLengths
from lora_chat.errors import MemoryShortError, RecipeError
from lora_chat.models.base_config import BaseConfig, find_config
from lora_chat.models.base_model import FoundBase, find_base, load_tokenizer
from lora_chat.models.bundled import embedded_names
from lora_chat.models.shape import read_shape
from lora_chat.models.stop_tokens import read_stop_ids
from lora_chat.pipeline.data_lengths import measure_data
from lora_chat.pipeline.load_data import find_files, read_data
from lora_chat.pipeline.machine_benchmark import SMALLEST, find_probe
from lora_chat.pipeline.prepare import PreparedRun
from lora_chat.planning.calibration import calibrate
from lora_chat.planning.device import Target
from lora_chat.planning.estimate import Forecast, make_forecast
from lora_chat.planning.format import refusal
from lora_chat.planning.gpu_specs import card_target, find_card, memory_target
from lora_chat.planning.local_device import survey_machine, time_processor
from lora_chat.planning.settings_search import Job, choose, make_setting
from lora_chat.runs.run_folder import RunFolder
from lora_chat.system.console import say
from lora_chat.system.hardware import Hardware, detect_hardware


def decide(
    plan: Plan, prepared: PreparedRun, earlier: RunFolder | None, reading: float
) -> tuple[Plan, Forecast | None]:
    """The plan with nothing left open, and what it will take; None for a base that no plan knows.

    `reading`: seconds until here. A run that goes on keeps what was decided for it.
    Raises MemoryShortError if it cannot fit.
    """
    if earlier:
        plan = _as_before(plan, earlier.read_plan())
    try:
        found = forecast_run(plan, prepared, reading)
    except RecipeError as error:
        say(f"Not planned: {error}")
        return plan, None
    if plan.training.memory != "unlimited" and found.verdict == "does not fit":
        raise MemoryShortError(refusal(found))
    return found.plan, found


def _as_before(plan: Plan, earlier: Plan) -> Plan:
    kept = {name: getattr(earlier.training, name) for name in plan.open_settings}
    if "micro_batch_size" in kept:
        kept["gradient_accumulation_steps"] = earlier.training.gradient_accumulation_steps
    if earlier.training.effective_batch_size != plan.training.effective_batch_size:
        return plan  # another run; it is refused where runs are compared
    training = plan.training.model_copy(update=kept)
    return plan.model_copy(update={"training": training, "open_settings": ()})


def forecast_recipe(recipe: Recipe, gpu: str | None, memory: str | None) -> Forecast:
    """What `sft` would need on a card of that name, on one of that much memory, or else here."""
    target, hardware = _find_target(gpu, memory)
    plan = make_plan(recipe, hardware)
    base = find_config(plan.base, say)
    shape = read_shape(base.config, base.name)
    began = time.monotonic()
    data = _read_lengths(plan, base, shape.positions)
    return _forecast(plan, Job(shape, data, target), base, time.monotonic() - began, patient=False)


def forecast_run(plan: Plan, prepared: PreparedRun, reading: float) -> Forecast:
    """The same of a run whose data has been read, in so many seconds, for this machine."""
    base = find_config(plan.base, say)
    shape = read_shape(base.config, base.name)
    data = measure_data(
        plan, prepared.train, prepared.validation, prepared.questions, prepared.identity.system, prepared.tokenizer
    )
    return _forecast(plan, Job(shape, data, survey_machine(detect_hardware())), base, reading, patient=True)


def _forecast(plan: Plan, job: Job, base: BaseConfig, reading: float, *, patient: bool) -> Forecast:
    memory = plan.training.memory
    if memory not in ("auto", "unlimited"):
        job = Job(job.shape, job.data, job.target.limited_to(parse_size(memory, "training.memory")))
    if memory != "unlimited":
        plan = choose(plan, job, job.target.limit)
    probe = None
    if memory != "unlimited":
        probe = find_probe(plan, job, base.config, base.folder, say, patient=patient)
    if probe:
        job = Job(job.shape, job.data, calibrate(job.target, probe, job.shape, make_setting(plan, job.shape)))
        plan = choose(plan, job, job.target.limit)
    elif job.target.speed is None and job.target.at_hand and job.shape.weights > SMALLEST:
        job = Job(job.shape, job.data, time_processor(job.target))
    return make_forecast(
        plan,
        job,
        base=base.name,
        origin=base.origin,
        weight_bytes=base.weight_bytes,
        download=base.download_bytes,
        probe=probe,
        reading=reading,
    )


def _find_target(gpu: str | None, memory: str | None) -> tuple[Target, Hardware]:
    here = detect_hardware()
    if gpu:
        target = card_target(find_card(gpu))
    elif memory:
        target = memory_target(parse_size(memory, "--memory"))
    else:
        return survey_machine(here), here
    return target, Hardware("cuda", target.name, target.memory, target.bfloat16, here.threads)


def _read_lengths(plan: Plan, base: BaseConfig, positions: int) -> DataLengths:
    """With the base's tokenizer, or where that is not here, with the embedded one."""
    files = find_files(plan, say)
    found = FoundBase(base.name, base.folder) if base.folder else find_base(BaseSection(name=embedded_names()[0]), say)
    tokenizer = load_tokenizer(found)
    install_template(tokenizer, plan.data.template)
    data = read_data(plan, files, tokenizer, read_stop_ids(found, tokenizer), positions, say)
    return measure_data(
        plan,
        data.train,
        data.validation,
        files.questions,
        data.system,
        tokenizer,
        estimated=base.folder is None,
    )
