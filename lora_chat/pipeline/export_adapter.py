"""A run or parcel written for other programs, each artefact opened by its real reader and compared."""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lora_chat.errors import RecipeError
from lora_chat.export.gguf import TYPES, export_gguf, export_gguf_adapter
from lora_chat.export.merge import Mixture
from lora_chat.export.ollama import find_template, write_modelfile
from lora_chat.export.parity.format import proof_line, write_proof
from lora_chat.export.peft import export_peft
from lora_chat.models.base_model import read_positions
from lora_chat.pipeline.held_out import Own
from lora_chat.pipeline.merge_adapters import open_mixture
from lora_chat.pipeline.open_adapter import Trust
from lora_chat.system.atomic_write import folder_written_whole
from lora_chat.system.console import megabytes, say, shown
from lora_chat.system.user_path import user_path

_USUAL_TYPE = "q8_0"
_CONTEXT = 4096
"""Tokens; Ollama's own default, where the base has positions for so many."""
_ALONE = {"gguf-adapter": export_gguf_adapter, "peft": export_peft}


def export_thing(
    thing: str, to: str, types: Sequence[str], out: Path | None, own: Own, trust: Trust, *, accept: bool
) -> dict[str, Any]:
    """Write an adapter as `to`, proven; `types` are GGUF types. Nothing is kept if one proof fails.

    Raises RecipeError, IntegrityError, BaseUnavailableError.
    """
    _check_types(to, types)
    mixture, make_probes, opened = open_mixture([thing], None, own, trust)
    name = user_path(thing).resolve().name.removesuffix(".lorachat")
    out = (out or Path("exports") / f"{name}-{to}").absolute()
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise RecipeError(f"{shown(out)} is there already; name another folder with --out.")
    probes = make_probes()
    template = find_template(mixture.tokenizer, probes) if to == "ollama" else None
    with folder_written_whole(out, "the export", shared=True) as folder:
        if to in _ALONE:
            reports = _ALONE[to](mixture, probes, folder, say, accept=accept)
        else:
            wanted = list(dict.fromkeys(types or [_USUAL_TYPE]))
            reports = export_gguf(mixture, probes, wanted, folder, name, say, accept=accept)
        if template:
            _write_modelfile(mixture, template, opened.system, folder)
        write_proof(folder, reports)
        shutil.rmtree(folder.parent / "work", ignore_errors=True)
    for report in reports:
        say(f"{report.what}: {proof_line(report)}")
    files = {file.name: file.stat().st_size for file in sorted(out.iterdir())}
    say(f"Exported to {shown(out)}: " + ", ".join(f"{file} ({megabytes(size)})" for file, size in files.items()))
    return {"exported": str(out), "files": files, "proofs": [report.as_dict() for report in reports]}


def _check_types(to: str, types: Sequence[str]) -> None:
    if types and to in _ALONE:
        raise RecipeError("--type belongs to --to gguf and --to ollama: an adapter alone is written as it is.")
    if to == "ollama" and len(set(types)) > 1:
        raise RecipeError("A Modelfile names one GGUF: give one --type.")
    if unknown := sorted(set(types) - set(TYPES)):
        raise RecipeError(f"--type {unknown[0]}: choose from {', '.join(TYPES)}.")


def _write_modelfile(mixture: Mixture, template: Any, system: str | None, folder: Path) -> None:
    stops = mixture.tokenizer.convert_ids_to_tokens(list(mixture.stop_ids))
    context = min(read_positions(mixture.base) or _CONTEXT, _CONTEXT)
    gguf = next(folder.glob("*.gguf"))
    write_modelfile(gguf, template, stops, system, context, folder.parent / "work" / "modelfile")
