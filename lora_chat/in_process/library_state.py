"""The settings of libraries that a call changes for its time: no telemetry, no code from a hub, no progress bars.

Most libraries read an environment variable when they are imported. A library that was imported before the call has read
another value, and one that the call imports would keep the value of the call. So each setting is an attribute of a
module, which is set during the call and restored after it.
"""

import logging
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from lora_chat.system.library_settings import CHATTY_LIBRARIES

_TRUE_TEXTS = ("1", "ON", "YES", "TRUE")


@dataclass(frozen=True)
class _ImportedSetting:
    """An attribute of a module that is made from an environment variable when the module is imported."""

    module: str
    attribute: str
    value: bool
    """Value during a call."""
    variable: str
    default: bool | None
    """Value without the variable."""

    def read(self) -> bool | None:
        """Return the value that the user's environment asks for."""
        text = os.environ.get(self.variable)
        return self.default if text is None else text.upper() in _TRUE_TEXTS


_SETTINGS = (
    _ImportedSetting("huggingface_hub.constants", "HF_HUB_DISABLE_TELEMETRY", True, "HF_HUB_DISABLE_TELEMETRY", False),
    _ImportedSetting("huggingface_hub.constants", "HF_HUB_DISABLE_XET", True, "HF_HUB_DISABLE_XET", False),
    _ImportedSetting(
        "huggingface_hub.constants", "HF_HUB_DISABLE_PROGRESS_BARS", True, "HF_HUB_DISABLE_PROGRESS_BARS", None
    ),
    _ImportedSetting(
        "huggingface_hub.utils.tqdm", "HF_HUB_DISABLE_PROGRESS_BARS", True, "HF_HUB_DISABLE_PROGRESS_BARS", None
    ),
    _ImportedSetting("transformers.integrations.hub_kernels", "_kernels_enabled", False, "USE_HUB_KERNELS", True),
    _ImportedSetting(
        "datasets.config", "HF_DATASETS_DISABLE_PROGRESS_BARS", True, "HF_DATASETS_DISABLE_PROGRESS_BARS", None
    ),
    _ImportedSetting(
        "datasets.utils.tqdm",
        "_hf_datasets_progress_bars_disabled",
        True,
        "HF_DATASETS_DISABLE_PROGRESS_BARS",
        False,
    ),
)
_BARS_MODULE, _BARS_ATTRIBUTE = "transformers.utils.logging", "_tqdm_active"
"""Whether Transformers shows progress bars, which it decides by the variable of huggingface_hub."""


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Hide messages, warnings and progress bars of libraries, and keep them from telemetry and code of a hub."""
    wanted = {setting: setting.read() for setting in _SETTINGS}
    before = {setting: _get(setting.module, setting.attribute) for setting in _SETTINGS}
    had_bars = _get(_BARS_MODULE, _BARS_ATTRIBUTE)
    levels = {name: logging.getLogger(name).level for name in CHATTY_LIBRARIES}
    imported = {name for name in CHATTY_LIBRARIES if name in sys.modules}
    for setting in _SETTINGS:
        _set(setting.module, setting.attribute, setting.value)
    _set(_BARS_MODULE, _BARS_ATTRIBUTE, False)
    for name in CHATTY_LIBRARIES:
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for name, level in levels.items():
            was_imported = name in imported or name not in sys.modules
            logging.getLogger(name).setLevel(level if was_imported else _choose_level(name, level))
        for setting in _SETTINGS:
            was_imported = before[setting] is not _MISSING
            _set(setting.module, setting.attribute, before[setting] if was_imported else wanted[setting])
        bars_hidden = bool(_SETTINGS[2].read())
        _set(_BARS_MODULE, _BARS_ATTRIBUTE, not bars_hidden if had_bars is _MISSING else had_bars)


_MISSING = object()


def _get(module: str, attribute: str) -> object:
    """Return an attribute of a module, or _MISSING if the module is not imported or has no such attribute."""
    return getattr(sys.modules.get(module), attribute, _MISSING)


def _choose_level(name: str, before: int) -> int:
    """Return the level that a library, which the call has imported, gives its logger without the call."""
    if name == "transformers":  # it takes the level from a variable, when it first logs
        find_level = _get(_BARS_MODULE, "_get_default_logging_level")
        return int(find_level()) if callable(find_level) else before
    level = logging.getLogger(name).level
    return before if level == logging.ERROR else level


def _set(module: str, attribute: str, value: object) -> None:
    """Set an attribute that an imported module has."""
    if _get(module, attribute) is not _MISSING:
        setattr(sys.modules[module], attribute, value)
