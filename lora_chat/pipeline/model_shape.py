"""The shape of a base that a plan is for: from its config by formulas, or measured on the model without weights."""

from lora_chat.config.lora_variants import find_initialization
from lora_chat.config.plan import Plan
from lora_chat.errors import RecipeError
from lora_chat.models.adapter import count_trainable_parameters, resolve_targets
from lora_chat.models.auto_class import make_meta_model
from lora_chat.models.base_config import BaseConfig, make_config
from lora_chat.models.shape import ModelShape, read_shape
from lora_chat.planning.measured_shape import MeasuredShape


def find_shape(plan: Plan, base: BaseConfig) -> ModelShape:
    """Return the shape of a base.

    It is measured if its architecture has no formulas, or if the base has more than a text model. Raises
    RecipeError for an adapter that does not fit the base, UnavailableError for a config that describes no model.
    """
    try:
        shape = read_shape(base.config, base.name)
    except RecipeError:
        return measure_base(plan, base)
    config = make_config(base)
    return shape if config.get_text_config() is config else measure_base(plan, base)


def measure_base(plan: Plan, base: BaseConfig) -> MeasuredShape:
    """Return the shape of a base of any architecture."""
    import torch

    from lora_chat.planning.dry_run.measure import measure_shape

    model = make_meta_model(make_config(base), base.name).to(torch.bfloat16)
    return measure_shape(model, plan.adapter)


def count_selected_parameters(plan: Plan, base: BaseConfig, shape: ModelShape) -> int | None:
    """Return the number of weights that a plan trains if it depends on names of layers.

    None means that it follows from the shape, or that only the config of the base is known; then the plan has the
    number for all layers with the largest rank. Raises RecipeError for parts that the base does not have.
    """
    adapter = plan.adapter
    names_parts = adapter.experts or adapter.modules_to_save or adapter.target_modules != "all-linear"
    if base.folder is not None and (names_parts or find_initialization(adapter.initialization).decomposes_weights):
        without_tokens = adapter.model_copy(update={"trainable_tokens": None})
        resolve_targets(make_meta_model(make_config(base), base.name), without_tokens)
    needs_names = adapter.selects_layers or adapter.bias != "none"
    if not isinstance(shape, MeasuredShape) and (not needs_names or base.folder is None):
        return None
    # The estimate adds the modules and rows that are trained beside LoRA.
    only_lora = plan.adapter.model_copy(update={"modules_to_save": None, "trainable_tokens": None})
    return count_trainable_parameters(make_meta_model(make_config(base), base.name), only_lora)
