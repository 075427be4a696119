"""The merged model, or the adapter alone, as a GGUF for llama.cpp, proven by llama.cpp."""

import json
import logging
from collections.abc import Sequence
from pathlib import Path

from lora_chat.errors import RecipeError
from lora_chat.export.llama_cpp_converters import convert, find_converters
from lora_chat.export.merge import AdapterBlend, write_base, write_merged_model
from lora_chat.export.parity.compare import ParityReport, check_parity, compare_outputs
from lora_chat.export.parity.llama_cpp_runner import LlamaCppRunner, check_llama_cpp, run_llama_cpp
from lora_chat.export.parity.outputs import ParityOutputs, collect_outputs
from lora_chat.export.parity.samples import ParitySample
from lora_chat.export.parity.tolerances import tolerances_for
from lora_chat.models.adapter import write_stored_adapter
from lora_chat.models.architectures import find_architecture
from lora_chat.models.base_model import read_model_type

logger = logging.getLogger(__name__)

FLOAT_TYPES = ("f32", "f16", "bf16")
GGUF_TYPES = (*FLOAT_TYPES, "q8_0", "q6_k", "q5_k_m", "q5_k_s", "q4_k_m", "q4_k_s", "q3_k_m")
"""What llama.cpp calls them; the others of its types need an importance matrix to be of use."""
ADAPTER_FILE_NAME = "adapter.gguf"


def export_gguf(
    blend: AdapterBlend,
    samples: Sequence[ParitySample],
    types: Sequence[str],
    folder: Path,
    name: str,
    *,
    accept: bool = False,
) -> list[ParityReport]:
    """Write `NAME-TYPE.gguf` for every type into a folder, each proven by llama.cpp.

    Raises IntegrityError if one does not agree and that is not accepted, UnavailableError without llama.cpp.
    """
    check_llama_cpp()
    scripts = find_converters()
    work_folder = folder.parent / "work"
    logger.info("Asking the adapted model")
    expected = blend.collect_outputs(samples)
    logger.info("Merging into the base as it was trained against")
    write_merged_model(blend, work_folder / "merged")
    source = work_folder / "source.gguf"
    source_type = "bf16" if blend.precision.dtype == "bfloat16" else "f32"
    reports = []
    for gguf_type in types:
        path = folder / f"{name}-{gguf_type}.gguf"
        logger.info(f"Writing and proving {path.name}")
        if gguf_type in FLOAT_TYPES:
            _convert(scripts, work_folder / "merged", gguf_type, path, name)
        else:
            if not source.exists():
                _convert(scripts, work_folder / "merged", source_type, source, name)
            request = {"do": "quantise", "type": gguf_type, "from": str(source.absolute()), "to": str(path.absolute())}
            (work_folder / gguf_type).mkdir()
            run_llama_cpp(request, work_folder / gguf_type)
        reports.append(
            check_parity(_check_gguf_parity(f"GGUF {gguf_type}", path, None, blend, expected, samples), accept=accept)
        )
    return reports


def export_gguf_adapter(
    blend: AdapterBlend,
    samples: Sequence[ParitySample],
    folder: Path,
    *,
    accept: bool = False,
) -> list[ParityReport]:
    """Write the LoRA alone, for llama.cpp's `--lora`; proven on a GGUF of the base as it was trained against."""
    check_llama_cpp()
    scripts = find_converters()
    if len(blend.adapters) > 1:
        raise RecipeError("A GGUF adapter is made of one run; llama.cpp takes several with --lora-scaled.")
    stored = blend.adapters[0][0].stored
    if unsupported := [variant.title for variant in stored.special_variants if not variant.read_by_llama_cpp]:
        raise RecipeError(f"llama.cpp knows no {unsupported[0]}: export the merged model instead (--to gguf).")
    if find_architecture(
        read_model_type(blend.base)
    ).stores_transposed_weights:  # tried with b10605: it cannot load the file
        raise RecipeError(
            "llama.cpp's converter turns GPT-2's weights, and LoRA's halves with them: export the merged model instead "
            "(--to gguf)."
        )
    work_folder = folder.parent / "work"
    logger.info("Asking the adapted model")
    expected = blend.collect_outputs(samples)
    logger.info("Writing a GGUF of the base")
    write_base(blend, work_folder / "base")
    source_type = "bf16" if blend.precision.dtype == "bfloat16" else "f32"
    _convert(scripts, work_folder / "base", source_type, work_folder / "base.gguf", "base")
    logger.info("Writing and proving the adapter")
    write_stored_adapter(stored, work_folder / "adapter", scale_in_alpha=True)
    path = folder / ADAPTER_FILE_NAME
    # In 32 bits: it is small, and llama.cpp computes with nothing less.
    options: list[Path | str] = ["--base", work_folder / "base", "--outfile", path, "--outtype", "f32"]
    convert(scripts / "convert_lora_to_gguf.py", work_folder / "adapter", options)
    report = _check_gguf_parity("GGUF adapter", work_folder / "base.gguf", path, blend, expected, samples)
    return [check_parity(report, accept=accept)]


def _convert(scripts: Path, model: Path, kind: str, to: Path, name: str) -> None:
    _add_converter_fields(model / "config.json")
    options: list[Path | str] = ["--outfile", to, "--outtype", kind, "--model-name", name]
    convert(scripts / "convert_hf_to_gguf.py", model, options)


def _add_converter_fields(path: Path) -> None:
    """Add the fields that a converter needs and Transformers 5 does not write, such as GPT-2's `n_ctx`."""
    config = json.loads(path.read_text(encoding="utf-8"))
    needed = dict(find_architecture(config.get("model_type")).llama_cpp_fields)
    if missing := {name: config[source] for name, source in needed.items() if name not in config}:
        path.write_text(json.dumps({**config, **missing}), encoding="utf-8")


def _check_gguf_parity(
    what: str,
    model: Path,
    lora: Path | None,
    blend: AdapterBlend,
    expected: ParityOutputs,
    samples: Sequence[ParitySample],
) -> ParityReport:
    reader = LlamaCppRunner(model, lora, samples, blend.stop_ids)
    vocabulary = expected.logits[0].shape[-1]
    delivered = collect_outputs(reader, samples, blend.stop_ids, vocabulary)
    return compare_outputs(what, reader.name, expected, delivered, samples, tolerances_for(what))
