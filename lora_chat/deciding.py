"""The settings that a recipe leaves open, decided for the memory at hand; what does not fit is refused."""

from lora_chat.errors import MemoryShortError, RecipeError
from lora_chat.forecast_view import refusal
from lora_chat.forecasting import forecast_run
from lora_chat.planning.forecast import Forecast
from lora_chat.planning.plan import Plan
from lora_chat.preparation import PreparedRun
from lora_chat.run_folder import RunFolder
from lora_chat.system.console import say


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
