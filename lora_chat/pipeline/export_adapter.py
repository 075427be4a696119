"""A run or parcel written for other programs, each artefact opened by its real reader and compared."""

import logging
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lora_chat.errors import RecipeError
from lora_chat.export.gguf import GGUF_TYPES, export_gguf, export_gguf_adapter
from lora_chat.export.merge import AdapterBlend
from lora_chat.export.ollama import convert_chat_template, write_modelfile
from lora_chat.export.parity.format import format_parity_line, write_parity_reports
from lora_chat.export.peft import export_peft
from lora_chat.models.base_model import read_max_positions
from lora_chat.pipeline.held_out import EvaluationFiles
from lora_chat.pipeline.merge_adapters import open_blend
from lora_chat.pipeline.open_adapter import TrustOptions
from lora_chat.system.atomic_write import atomic_folder
from lora_chat.system.console import display_path, format_bytes
from lora_chat.system.user_path import expand_user_path

logger = logging.getLogger(__name__)

_DEFAULT_GGUF_TYPE = "q8_0"
_DEFAULT_CONTEXT_TOKENS = 4096
"""Tokens; Ollama's own default, where the base has positions for so many."""
_ADAPTER_EXPORTERS = {"gguf-adapter": export_gguf_adapter, "peft": export_peft}


def export_adapter(
    source: str,
    to: str,
    types: Sequence[str],
    out: Path | None,
    evaluation_files: EvaluationFiles,
    trust: TrustOptions,
    *,
    accept: bool,
) -> dict[str, Any]:
    """Write an adapter as `to`, proven; `types` are GGUF types. Nothing is kept if one proof fails.

    Raises RecipeError, IntegrityError, UnavailableError.
    """
    _check_types(to, types)
    blend, make_samples, opened = open_blend([source], None, evaluation_files, trust)
    name = expand_user_path(source).resolve().name.removesuffix(".lorachat")
    out = (out or Path("exports") / f"{name}-{to}").absolute()
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise RecipeError(f"{display_path(out)} is there already; name another folder with --out.")
    samples = make_samples()
    template = convert_chat_template(blend.tokenizer, samples) if to == "ollama" else None
    with atomic_folder(out, "the export", shared=True) as folder:
        if to in _ADAPTER_EXPORTERS:
            reports = _ADAPTER_EXPORTERS[to](blend, samples, folder, accept=accept)
        else:
            gguf_types = list(dict.fromkeys(types or [_DEFAULT_GGUF_TYPE]))
            reports = export_gguf(blend, samples, gguf_types, folder, name, accept=accept)
        if template:
            _write_modelfile(blend, template, opened.system, folder)
        write_parity_reports(folder, reports)
        shutil.rmtree(folder.parent / "work", ignore_errors=True)
    for report in reports:
        logger.info(f"{report.what}: {format_parity_line(report)}")
    files = {file.name: file.stat().st_size for file in sorted(out.iterdir())}
    logger.info(
        f"Exported to {display_path(out)}: "
        + ", ".join(f"{file} ({format_bytes(size)})" for file, size in files.items())
    )
    return {"exported": str(out), "files": files, "proofs": [report.as_dict() for report in reports]}


def _check_types(to: str, types: Sequence[str]) -> None:
    if types and to in _ADAPTER_EXPORTERS:
        raise RecipeError("--type belongs to --to gguf and --to ollama: an adapter alone is written as it is.")
    if to == "ollama" and len(set(types)) > 1:
        raise RecipeError("A Modelfile names one GGUF: give one --type.")
    if unknown := sorted(set(types) - set(GGUF_TYPES)):
        raise RecipeError(f"--type {unknown[0]}: choose from {', '.join(GGUF_TYPES)}.")


def _write_modelfile(blend: AdapterBlend, template: Any, system: str | None, folder: Path) -> None:
    stops = blend.tokenizer.convert_ids_to_tokens(list(blend.stop_ids))
    context = min(read_max_positions(blend.base) or _DEFAULT_CONTEXT_TOKENS, _DEFAULT_CONTEXT_TOKENS)
    gguf = next(folder.glob("*.gguf"))
    write_modelfile(gguf, template, stops, system, context, folder.parent / "work" / "modelfile")
