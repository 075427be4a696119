"""The chat template that another tool saved beside an adapter."""

from pathlib import Path

from lora_chat.errors import IntegrityError
from lora_chat.system.bounded_files import MEDIUM_FILE_BYTES, SMALL_FILE_BYTES, read_json, read_text
from lora_chat.system.sanitize import sanitize_line

_TEMPLATE_NAME, _FOLDER_NAME = "chat_template.jinja", "additional_chat_templates"
_CONFIG_NAMES = "tokenizer_config.json", "chat_template.json"
"""Files with a template under the key `chat_template`: of a tokenizer, and of a processor in older versions."""
_DEFAULT = "default"
_MAX_SHOWN_CHARACTERS = 100


def read_template_beside(folder: Path) -> str | None:
    """Return the template that Transformers would use in an adapter's folder; None if it has none.

    Template files replace the template in tokenizer_config.json, as in `PreTrainedTokenizerBase.from_pretrained`.
    Raises IntegrityError for a file that cannot be read, and for named templates without a default.
    """
    templates = _read_template_files(folder)
    for name in _CONFIG_NAMES:
        templates = templates or _read_config_templates(folder / name)
    if not templates:
        return None
    if _DEFAULT not in templates:
        names = ", ".join(sanitize_line(name, _MAX_SHOWN_CHARACTERS) for name in sorted(templates)[:5])
        raise IntegrityError(
            f"{folder} has several named chat templates and none is called default ({names}). "
            f"Fix: save the template of training there as {_TEMPLATE_NAME}."
        )
    return templates[_DEFAULT]


def is_same_template(first: str, second: str) -> bool:
    """Return whether two texts are the same template. Jinja ignores one newline at the end."""
    return first.removesuffix("\n") == second.removesuffix("\n")


def _read_template_files(folder: Path) -> dict[str, str]:
    """Return the templates of `.jinja` files by name."""
    paths = {path.stem: path for path in sorted((folder / _FOLDER_NAME).glob("*.jinja"))}
    if (folder / _TEMPLATE_NAME).exists():
        paths[_DEFAULT] = folder / _TEMPLATE_NAME
    return {name: read_text(path) for name, path in paths.items()}


def _read_config_templates(path: Path) -> dict[str, str]:
    """Return the templates of a JSON file by name: a text is the default, a list or an object has names."""
    if not path.exists():
        return {}
    config = read_json(path, MEDIUM_FILE_BYTES)
    value = config.get("chat_template") if isinstance(config, dict) else config
    if isinstance(value, list) and all(isinstance(entry, dict) for entry in value):
        value = {entry.get("name"): entry.get("template") for entry in value}
    templates = {_DEFAULT: value} if isinstance(value, str) else value or {}
    if (
        not isinstance(templates, dict)
        or not all(isinstance(part, str) for item in templates.items() for part in item)
        or sum(map(len, templates.values())) > SMALL_FILE_BYTES
    ):
        raise IntegrityError(f"{path} has a chat_template that is not a text of at most {SMALL_FILE_BYTES:,} bytes.")
    return {name: text for name, text in templates.items() if text}
