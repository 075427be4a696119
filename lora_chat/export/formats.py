"""The tables of export formats and GGUF types, from which the command, its help and the pipeline derive.

This module imports no library, because the command line reads it for its help.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lora_chat.export.parity.tolerances import FOLDER_TOLERANCES, SAME_WEIGHTS_REASON, Tolerances

if TYPE_CHECKING:
    from lora_chat.export.exporter import Exporter


@dataclass(frozen=True)
class GgufType:
    """A type of the weights in a GGUF, named as llama.cpp names it."""

    name: str
    tolerances: Tolerances
    is_float: bool = False
    """Whether the converter writes this type itself; the other types are quantized from a float type."""


_FLOAT_TOLERANCES = Tolerances(1e-2, 0.92, 0.02, 0.25, SAME_WEIGHTS_REASON)
GGUF_TYPES = {
    gguf_type.name: gguf_type
    for gguf_type in (
        GgufType("f32", _FLOAT_TOLERANCES, is_float=True),
        GgufType("f16", _FLOAT_TOLERANCES, is_float=True),
        GgufType("bf16", _FLOAT_TOLERANCES, is_float=True),
        GgufType("q8_0", Tolerances(2e-2, 0.92, 0.03, 0.2, "8.5 bits a weight")),
        GgufType("q6_k", Tolerances(4e-2, 0.90, 0.05, 0.1, "6.6 bits a weight")),
        GgufType("q5_k_m", Tolerances(8e-2, 0.87, 0.08, 0.0, "5.7 bits a weight")),
        GgufType("q5_k_s", Tolerances(8e-2, 0.87, 0.08, 0.0, "5.5 bits a weight")),
        GgufType("q4_k_m", Tolerances(0.15, 0.82, 0.12, 0.0, "4.9 bits a weight")),
        GgufType("q4_k_s", Tolerances(0.2, 0.80, 0.15, 0.0, "4.6 bits a weight")),
        GgufType("q3_k_m", Tolerances(0.5, 0.65, 0.3, 0.0, "3.9 bits a weight: replies change visibly")),
    )
}
"""GGUF types by name. The other types of llama.cpp need an importance matrix to be useful."""
DEFAULT_GGUF_TYPE = "q8_0"

TOLERANCES = {**FOLDER_TOLERANCES, **{f"GGUF {name}": gguf_type.tolerances for name, gguf_type in GGUF_TYPES.items()}}
"""Tolerances by the name of the parity report."""


@dataclass(frozen=True)
class ExportFormat:
    """A choice of `export --to`."""

    name: str
    help: str
    checked_by: str
    """Program that opens the written files in the parity check."""
    load_exporter: "Callable[[], type[Exporter]]"
    """Imports the writer, which needs heavy libraries."""
    max_types: int | None = 0
    """Number of GGUF types that one export takes; None without a limit."""


def _load_gguf_exporter() -> "type[Exporter]":
    """Import the writer of merged GGUF files."""
    from lora_chat.export.gguf import GgufExporter

    return GgufExporter


def _load_gguf_adapter_exporter() -> "type[Exporter]":
    """Import the writer of GGUF adapters."""
    from lora_chat.export.gguf import GgufAdapterExporter

    return GgufAdapterExporter


def _load_ollama_exporter() -> "type[Exporter]":
    """Import the writer of a GGUF with a Modelfile."""
    from lora_chat.export.ollama import OllamaExporter

    return OllamaExporter


def _load_peft_exporter() -> "type[Exporter]":
    """Import the writer of PEFT folders."""
    from lora_chat.export.peft import PeftExporter

    return PeftExporter


def _load_mlx_adapter_exporter() -> "type[Exporter]":
    """Import the writer of adapters for mlx-lm."""
    from lora_chat.export.mlx_adapter import MlxAdapterExporter

    return MlxAdapterExporter


EXPORT_FORMATS = {
    export_format.name: export_format
    for export_format in (
        ExportFormat(
            "gguf",
            "a merged model for llama.cpp and the programs based on it",
            "llama.cpp",
            _load_gguf_exporter,
            max_types=None,
        ),
        ExportFormat(
            "gguf-adapter", "only the LoRA weights, for --lora of llama.cpp", "llama.cpp", _load_gguf_adapter_exporter
        ),
        ExportFormat("ollama", "a merged GGUF with a Modelfile", "llama.cpp", _load_ollama_exporter, max_types=1),
        ExportFormat("peft", "a folder with the adapter for PEFT", "PEFT", _load_peft_exporter),
        ExportFormat("mlx-adapter", "a folder with the adapter for mlx-lm", "Transformers", _load_mlx_adapter_exporter),
    )
}
"""Export formats by name."""
