"""The merged model, or the adapter alone, as a GGUF for llama.cpp, proven by llama.cpp."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

from lora_chat.errors import RecipeError
from lora_chat.export.llama_cpp_converters import convert, find_converters
from lora_chat.export.merge import Mixture, write_base, write_merged
from lora_chat.export.parity.compare import ProofReport, check_proof, prove
from lora_chat.export.parity.llama_cpp_runner import LlamaCppReader, check_llama_cpp, run_llama_cpp
from lora_chat.export.parity.outputs import Answers, ask
from lora_chat.export.parity.samples import Probe
from lora_chat.export.parity.tolerances import limits_of
from lora_chat.models.adapter import write_stored
from lora_chat.models.base_model import read_architecture

FLOATS = ("f32", "f16", "bf16")
TYPES = (*FLOATS, "q8_0", "q6_k", "q5_k_m", "q5_k_s", "q4_k_m", "q4_k_s", "q3_k_m")
"""What llama.cpp calls them; the others of its types need an importance matrix to be of use."""
ADAPTER_NAME = "adapter.gguf"


def export_gguf(
    mixture: Mixture,
    probes: Sequence[Probe],
    types: Sequence[str],
    folder: Path,
    name: str,
    notice: Callable[[str], None],
    *,
    accept: bool = False,
) -> list[ProofReport]:
    """Write `NAME-TYPE.gguf` for every type into a folder, each proven by llama.cpp.

    Raises IntegrityError if one does not agree and that is not accepted, BaseUnavailableError without llama.cpp.
    """
    check_llama_cpp()
    scripts = find_converters(notice)
    work = folder.parent / "work"
    notice("Asking the adapted model")
    expected = mixture.ask(probes)
    notice("Merging into the base as it was trained against")
    write_merged(mixture, work / "merged")
    source = work / "source.gguf"
    exact = "bf16" if mixture.precision.dtype == "bfloat16" else "f32"
    reports = []
    for kind in types:
        path = folder / f"{name}-{kind}.gguf"
        notice(f"Writing and proving {path.name}")
        if kind in FLOATS:
            _convert(scripts, work / "merged", kind, path, name)
        else:
            if not source.exists():
                _convert(scripts, work / "merged", exact, source, name)
            request = {"do": "quantise", "type": kind, "from": str(source.absolute()), "to": str(path.absolute())}
            (work / kind).mkdir()
            run_llama_cpp(request, work / kind)
        reports.append(check_proof(_prove(f"GGUF {kind}", path, None, mixture, expected, probes), accept=accept))
    return reports


def export_gguf_adapter(
    mixture: Mixture, probes: Sequence[Probe], folder: Path, notice: Callable[[str], None], *, accept: bool = False
) -> list[ProofReport]:
    """Write the LoRA alone, for llama.cpp's `--lora`; proven on a GGUF of the base as it was trained against."""
    check_llama_cpp()
    scripts = find_converters(notice)
    if len(mixture.adapters) > 1:
        raise RecipeError("A GGUF adapter is made of one run; llama.cpp takes several with --lora-scaled.")
    stored = mixture.adapters[0][0].stored
    if stored.config.get("use_dora") is True:
        raise RecipeError("llama.cpp knows no DoRA: export the merged model instead (--to gguf).")
    if read_architecture(mixture.base) == "gpt2":  # tried with b10605: it cannot load what its converter writes
        raise RecipeError(
            "llama.cpp's converter turns GPT-2's weights, and LoRA's halves with them: export the merged model instead "
            "(--to gguf)."
        )
    work = folder.parent / "work"
    notice("Asking the adapted model")
    expected = mixture.ask(probes)
    notice("Writing a GGUF of the base")
    write_base(mixture, work / "base")
    exact = "bf16" if mixture.precision.dtype == "bfloat16" else "f32"
    _convert(scripts, work / "base", exact, work / "base.gguf", "base")
    notice("Writing and proving the adapter")
    write_stored(stored, work / "adapter", scale_in_alpha=True)
    path = folder / ADAPTER_NAME
    # In 32 bits: it is small, and llama.cpp computes with nothing less.
    options: list[Path | str] = ["--base", work / "base", "--outfile", path, "--outtype", "f32"]
    convert(scripts / "convert_lora_to_gguf.py", work / "adapter", options)
    report = _prove("GGUF adapter", work / "base.gguf", path, mixture, expected, probes)
    return [check_proof(report, accept=accept)]


def _convert(scripts: Path, model: Path, kind: str, to: Path, name: str) -> None:
    _name_context(model / "config.json")
    options: list[Path | str] = ["--outfile", to, "--outtype", kind, "--model-name", name]
    convert(scripts / "convert_hf_to_gguf.py", model, options)


def _name_context(path: Path) -> None:
    """GPT-2's converter asks for `n_ctx`, which transformers 5 no longer writes (llama.cpp, `conversion/gpt2.py`)."""
    config = json.loads(path.read_text(encoding="utf-8"))
    if config.get("model_type") == "gpt2" and "n_ctx" not in config:
        path.write_text(json.dumps({**config, "n_ctx": config["n_positions"]}), encoding="utf-8")


def _prove(
    what: str, model: Path, lora: Path | None, mixture: Mixture, expected: Answers, probes: Sequence[Probe]
) -> ProofReport:
    reader = LlamaCppReader(model, lora, probes, mixture.stop_ids)
    vocabulary = expected.logits[0].shape[-1]
    delivered = ask(reader, probes, mixture.stop_ids, vocabulary)
    return prove(what, reader.name, expected, delivered, probes, limits_of(what))
