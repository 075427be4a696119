"""Fine-tune a chat model with LoRA on the computer you have, and know what it learned.

The Python API is imported from here: `from lora_chat import Recipe, fine_tune`. Its names are loaded when they are
first used, so that `import lora_chat` is quick and imports no PyTorch. docs/api.md describes it.
"""

import logging
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lora_chat.api import evaluate as evaluate
    from lora_chat.api import export as export
    from lora_chat.api import fine_tune as fine_tune
    from lora_chat.api import generate as generate
    from lora_chat.api import inspect_data as inspect_data
    from lora_chat.api import list_recipes as list_recipes
    from lora_chat.api import load as load
    from lora_chat.api import merge as merge
    from lora_chat.api import pack as pack
    from lora_chat.api import plan as plan
    from lora_chat.api import verify as verify
    from lora_chat.config.bundled_recipes import BundledRecipe as BundledRecipe
    from lora_chat.config.recipe import Recipe as Recipe
    from lora_chat.errors import ConsentError as ConsentError
    from lora_chat.errors import DataError as DataError
    from lora_chat.errors import DiskError as DiskError
    from lora_chat.errors import DiskFullError as DiskFullError
    from lora_chat.errors import IntegrityError as IntegrityError
    from lora_chat.errors import InUseError as InUseError
    from lora_chat.errors import LoraChatError as LoraChatError
    from lora_chat.errors import MissingPackageError as MissingPackageError
    from lora_chat.errors import NonFiniteError as NonFiniteError
    from lora_chat.errors import OutOfMemoryError as OutOfMemoryError
    from lora_chat.errors import RecipeError as RecipeError
    from lora_chat.errors import StoppedError as StoppedError
    from lora_chat.errors import TemplateError as TemplateError
    from lora_chat.errors import UnavailableError as UnavailableError
    from lora_chat.errors import UsageError as UsageError
    from lora_chat.evaluation.verdict import Verdict as Verdict
    from lora_chat.in_process.loaded_model import LoadedModel as LoadedModel
    from lora_chat.in_process.progress import ProgressEvent as ProgressEvent
    from lora_chat.in_process.progress import ProgressPrinter as ProgressPrinter
    from lora_chat.in_process.progress import print_progress as print_progress
    from lora_chat.in_process.results import FineTuneResult as FineTuneResult
    from lora_chat.pipeline.evaluate import EvaluationResult as EvaluationResult
    from lora_chat.pipeline.export_adapter import ExportResult as ExportResult
    from lora_chat.pipeline.inspect_data import DataInspection as DataInspection
    from lora_chat.pipeline.merge_adapters import MergeResult as MergeResult
    from lora_chat.pipeline.pack_run import PackResult as PackResult
    from lora_chat.pipeline.verify_parcel import ParcelVerification as ParcelVerification
    from lora_chat.planning.estimate import RunEstimate as RunEstimate

__version__ = "0.1.0"

_API = "lora_chat.api"
_EXPORTS = {
    **dict.fromkeys(
        (
            *("evaluate", "fine_tune", "generate", "inspect_data", "list_recipes", "load", "merge", "pack", "plan"),
            "verify",
        ),
        _API,
    ),
    **dict.fromkeys(
        (
            *("ConsentError", "DataError", "DiskError", "DiskFullError", "InUseError", "IntegrityError"),
            *("LoraChatError", "MissingPackageError", "NonFiniteError", "OutOfMemoryError", "RecipeError"),
            *("StoppedError", "TemplateError", "UnavailableError", "UsageError"),
        ),
        "lora_chat.errors",
    ),
    **dict.fromkeys(("ProgressEvent", "ProgressPrinter", "print_progress"), "lora_chat.in_process.progress"),
    "BundledRecipe": "lora_chat.config.bundled_recipes",
    "DataInspection": "lora_chat.pipeline.inspect_data",
    "EvaluationResult": "lora_chat.pipeline.evaluate",
    "ExportResult": "lora_chat.pipeline.export_adapter",
    "FineTuneResult": "lora_chat.in_process.results",
    "LoadedModel": "lora_chat.in_process.loaded_model",
    "MergeResult": "lora_chat.pipeline.merge_adapters",
    "PackResult": "lora_chat.pipeline.pack_run",
    "ParcelVerification": "lora_chat.pipeline.verify_parcel",
    "Recipe": "lora_chat.config.recipe",
    "RunEstimate": "lora_chat.planning.estimate",
    "Verdict": "lora_chat.evaluation.verdict",
}
"""Module of each public name."""
_LIGHT_MODULES = (_API, "lora_chat.errors", "lora_chat.config.recipe", "lora_chat.config.bundled_recipes")
"""Modules that import no library that reads protective variables."""
__all__ = [
    "BundledRecipe",
    "ConsentError",
    "DataError",
    "DataInspection",
    "DiskError",
    "DiskFullError",
    "EvaluationResult",
    "ExportResult",
    "FineTuneResult",
    "InUseError",
    "IntegrityError",
    "LoadedModel",
    "LoraChatError",
    "MergeResult",
    "MissingPackageError",
    "NonFiniteError",
    "OutOfMemoryError",
    "PackResult",
    "ParcelVerification",
    "ProgressEvent",
    "ProgressPrinter",
    "Recipe",
    "RecipeError",
    "RunEstimate",
    "StoppedError",
    "TemplateError",
    "UnavailableError",
    "UsageError",
    "Verdict",
    "__version__",
    "evaluate",
    "export",
    "fine_tune",
    "generate",
    "inspect_data",
    "list_recipes",
    "load",
    "merge",
    "pack",
    "plan",
    "print_progress",
    "verify",
]

logging.getLogger(__name__).addHandler(logging.NullHandler())  # messages go where the user's program sends them


def __getattr__(name: str) -> object:
    """Load a public name when it is first used (PEP 562)."""
    if name == "export":
        return import_module("lora_chat.export")  # a package with this name exists, and it can be called
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if _EXPORTS[name] in _LIGHT_MODULES:
        module = import_module(_EXPORTS[name])
    else:
        with import_module("lora_chat.in_process.call").protected_imports():
            module = import_module(_EXPORTS[name])
    value = getattr(module, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
