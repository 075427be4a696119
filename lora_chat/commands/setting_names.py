"""The names of all settings of a recipe, for completion and for suggestions."""

from pydantic import BaseModel

from lora_chat.config.recipe import Recipe


def list_setting_names() -> list[str]:
    """Return the names of all settings as `--set` takes them, such as `training.epochs`."""
    names: list[str] = []
    pending: list[tuple[str, type[BaseModel]]] = [("", Recipe)]
    while pending:
        prefix, model = pending.pop()
        for name, field in model.model_fields.items():
            kind = field.annotation
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                pending.append((f"{prefix}{name}.", kind))
            elif prefix:
                names.append(f"{prefix}{name}")
    return sorted(names)
