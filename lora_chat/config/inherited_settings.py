"""The settings of a recipe that the adapter of `adapter.start` decides if the recipe leaves them out."""

from collections.abc import Mapping, Sequence

from lora_chat.config.recipe import AdapterSection, Recipe

FREE_ADAPTER_SETTINGS = ("start", "stack", "dropout")
"""Settings of the adapter that a continued training may choose itself."""
_OTHER_SETTINGS = {
    "base": ("name", "revision"),
    "quantization": ("mode", "double_quantization"),
    "data": ("keep_tokens",),
}
"""Settings outside the section `adapter` that are inherited, with `stack` too."""


def find_inherited_settings(recipe: Recipe) -> Mapping[str, Sequence[str]]:
    """Return the names of inherited settings by section: those that the recipe leaves out, and none without `start`."""
    if recipe.adapter.start is None:
        return {}
    names: dict[str, Sequence[str]] = dict(_OTHER_SETTINGS)
    if recipe.adapter.stack is None:
        names["adapter"] = [name for name in AdapterSection.model_fields if name not in ("start", "stack")]
    return {
        section: [name for name in settings if name not in getattr(recipe, section).model_fields_set]
        for section, settings in names.items()
    }
