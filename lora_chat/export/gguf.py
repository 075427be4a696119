"""Write the merged model, or only the adapter, as a GGUF for llama.cpp, and check it with llama.cpp."""

import logging
from collections.abc import Iterator
from pathlib import Path

from lora_chat.config.plan import Dtype
from lora_chat.data.encoding.thinking_switch import forced_default
from lora_chat.errors import UsageError
from lora_chat.export.exporter import ExportJob
from lora_chat.export.formats import DEFAULT_GGUF_TYPE, GGUF_TYPES
from lora_chat.export.gguf_conversion import convert_model
from lora_chat.export.llama_cpp_converters import convert, find_converters
from lora_chat.export.merge import write_base, write_merged_model
from lora_chat.export.parity.llama_cpp_runner import LlamaCppRunner, check_llama_cpp, run_llama_cpp
from lora_chat.export.parity.reading_device import check_main_memory
from lora_chat.models.adapter import write_stored_adapter
from lora_chat.models.architectures import find_architecture
from lora_chat.models.base_model import read_model_type

logger = logging.getLogger(__name__)

ADAPTER_FILE_NAME = "adapter.gguf"
_GGUF_TYPE_BY_DTYPE: dict[Dtype, str] = {"bfloat16": "bf16", "float16": "f16", "float32": "f32"}
"""GGUF type that has the values of a merged model, by the dtype of its base."""


class GgufExporter:
    """The writer of merged models, one file `NAME-TYPE.gguf` for each GGUF type."""

    def __init__(self, job: ExportJob) -> None:
        self._job = job
        self._source_type = _GGUF_TYPE_BY_DTYPE[job.blend.precision.dtype]

    def check(self) -> None:
        """Raise UnavailableError without llama.cpp or its converters, OutOfMemoryError without enough main memory."""
        check_llama_cpp()
        find_converters()
        check_main_memory(self._job.blend.base, self._job.blend.precision)

    def write(self) -> Iterator[tuple[str, Path]]:
        """Merge the adapters and write each type; quantized types start from a GGUF in the precision of training."""
        job = self._job
        logger.info("Merging into the weights that training used")
        merged, source = job.work_folder / "merged", job.work_folder / "source.gguf"
        with forced_default(job.blend.tokenizer):
            write_merged_model(job.blend, merged)
        for gguf_type in dict.fromkeys(job.gguf_types or [DEFAULT_GGUF_TYPE]):
            path = job.folder / f"{job.name}-{gguf_type}.gguf"
            logger.info(f"Writing and checking {path.name}")
            if GGUF_TYPES[gguf_type].is_float:
                convert_model(merged, gguf_type, path, job.name)
            else:
                if not source.exists():
                    convert_model(merged, self._source_type, source, job.name)
                _quantize(source, gguf_type, path, job.work_folder / gguf_type)
            yield f"GGUF {gguf_type}", path

    def open_runner(self, path: Path) -> LlamaCppRunner:
        """Open the file in llama.cpp."""
        return LlamaCppRunner(path, None, self._job.samples, self._job.blend.stop_ids)


class GgufAdapterExporter(GgufExporter):
    """The writer of only the LoRA weights, for llama.cpp's `--lora`; checked on a GGUF of the base of training."""

    def check(self) -> None:
        """Raise UsageError for adapters that llama.cpp cannot load, UnavailableError without llama.cpp."""
        blend = self._job.blend
        if len(blend.adapters) > 1:
            raise UsageError(
                f"A GGUF adapter contains one adapter: {len(blend.adapters)} are given. "
                "Fix: export each one; llama.cpp can load several with --lora-scaled."
            )
        stored = blend.adapters[0][0].stored
        if unsupported := [variant.title for variant in stored.special_variants if not variant.read_by_llama_cpp]:
            raise UsageError(f"llama.cpp has no {unsupported[0]}. Fix: export the merged model with --to gguf.")
        if stored.trains_experts:
            raise UsageError(
                "llama.cpp's converter reads no LoRA on experts (PEFT's target_parameters). "
                "Fix: export the merged model with --to gguf."
            )
        if stored.replaces_weights:
            raise UsageError(
                f"{stored.name} replaces whole modules or rows of the base, which llama.cpp's adapters cannot do. "
                "Fix: export the merged model with --to gguf."
            )
        if stored.has_biases:
            raise UsageError("llama.cpp's adapters have no biases. Fix: export the merged model with --to gguf.")
        # Tested with b10605: llama.cpp cannot load the file that its converter writes.
        if find_architecture(read_model_type(blend.base)).stores_transposed_weights:
            raise UsageError(
                "llama.cpp cannot load adapters of GPT-2: its converter transposes the weights and swaps the LoRA "
                "halves. Fix: export the merged model with --to gguf."
            )
        super().check()

    def write(self) -> Iterator[tuple[str, Path]]:
        """Write a GGUF of the base into the work folder, and the adapter into the folder."""
        job = self._job
        logger.info("Writing a GGUF of the base")
        base_folder, path = job.work_folder / "base", job.folder / ADAPTER_FILE_NAME
        write_base(job.blend, base_folder)
        convert_model(base_folder, self._source_type, job.work_folder / "base.gguf", "base")
        logger.info("Writing and checking the adapter")
        stored = job.blend.adapters[0][0].stored
        write_stored_adapter(stored, job.work_folder / "adapter", scale_in_alpha=True)
        # In 32 bits, because the file is small and llama.cpp computes with at least 32 bits.
        options: list[Path | str] = ["--base", base_folder, "--outfile", path, "--outtype", "f32"]
        convert(find_converters() / "convert_lora_to_gguf.py", job.work_folder / "adapter", options)
        yield "GGUF adapter", path

    def open_runner(self, path: Path) -> LlamaCppRunner:
        """Open the GGUF of the base with the adapter in llama.cpp."""
        return LlamaCppRunner(self._job.work_folder / "base.gguf", path, self._job.samples, self._job.blend.stop_ids)


def _quantize(source: Path, gguf_type: str, to: Path, folder: Path) -> None:
    """Quantize a GGUF in a float type to another type; `folder` is for the files of the worker."""
    folder.mkdir()
    run_llama_cpp(
        {"do": "quantise", "type": gguf_type, "from": str(source.absolute()), "to": str(to.absolute())}, folder
    )
