"""Find and load a base: its tokenizer, and its frozen weights in 16, 8 or 4 bits."""

import logging
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_chat.config.plan import PrecisionPlan
from lora_chat.config.recipe import BaseSection
from lora_chat.errors import LoraChatError, OutOfMemoryError, UnavailableError, first_line
from lora_chat.models.auto_class import find_auto_class, make_meta_model
from lora_chat.models.base_files import check_base_files
from lora_chat.models.bundled import bundled_base_names, find_bundled_base, needs_download
from lora_chat.models.config_checks import check_loaded_config
from lora_chat.models.hub import find_cached_base, find_or_download_base
from lora_chat.models.integrity import FileStats, check_unchanged, read_file_stats
from lora_chat.models.model_errors import describe_unreadable_config
from lora_chat.models.other_kinds import explain_other_base
from lora_chat.models.quantization.cpu_linear import dequantize_on_the_fly
from lora_chat.models.quantization.quantize_on_card import quantized_on
from lora_chat.models.quantization.quantized_base import (
    cast_unquantized_weights,
    load_dequantized,
    make_quantization_options,
)
from lora_chat.models.quantization.weight_cache import (
    cache_dense_weights,
    copy_mapped_weights,
    disable_weight_repacking,
)
from lora_chat.models.stored_precision import read_stored_quantization, with_stored_quantization
from lora_chat.models.tokenizer_files import (
    check_sentencepiece,
    check_tokenizer_files,
    describe_reading_error,
    read_processor_template,
)
from lora_chat.models.tokenizer_limits import fit_tokenizer
from lora_chat.models.weight_check import check_loaded_weights, check_weight_count, check_weight_headers
from lora_chat.models.weight_files import find_weight_files
from lora_chat.system.bounded_call import call_with_timeout, is_rust_panic
from lora_chat.system.gpu_memory import count_gpu_memory_errors
from lora_chat.system.malloc import release_freed_memory
from lora_chat.system.memory_limit import is_out_of_memory
from lora_chat.system.received_folder import check_received_folder
from lora_chat.system.user_path import expand_user_path

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

TOKENIZER_SAMPLE_TEXT = "It's 7:30 pm.\n\n Ça va? 你好 \U0001f642 def f(x):\n\treturn x"
"""Text whose ids differ between tokenizers; they are part of a base's identity."""
_TOKENIZER_TIMEOUT_SECONDS = 20.0


@dataclass(frozen=True)
class LocalBase:
    """A base whose files are on this machine."""

    name: str
    """Name in the recipe; for a folder, its absolute path."""
    folder: Path
    revision: str | None = None
    """Commit of a hub id."""
    file_stats: FileStats | None = field(default=None, compare=False, repr=False)
    """State of its files before any check; None if the caller does not check for changes."""

    def check_unchanged(self) -> None:
        """Raise IntegrityError if a file of the base has changed since the base was found."""
        if self.file_stats is not None:
            check_unchanged(self.folder, self.file_stats)


def is_base_local(base: BaseSection) -> bool:
    """Return whether a base can be used without a download."""
    if base.name in bundled_base_names():
        return not needs_download(base.name)
    return expand_user_path(base.name, "base.name: ").is_dir() or find_cached_base(base.name, base.revision) is not None


def is_hub_id(name: str) -> bool:
    """Return whether a base's name has the form OWNER/NAME."""
    return not name.startswith((".", "/", "~")) and name.count("/") == 1


def find_base(base: BaseSection) -> LocalBase:
    """Return an embedded base, a local folder, or a hub id, which is downloaded once.

    Raises UnavailableError with the fix, IntegrityError for a folder that contains links or special files.
    """
    local = expand_user_path(base.name, "base.name: ")
    if base.name in bundled_base_names():
        folder = find_bundled_base(base.name)
        return LocalBase(base.name, folder, file_stats=read_file_stats(folder))
    if local.is_dir():
        check_received_folder(local)
        if other := explain_other_base(local, base.name):
            raise UnavailableError(other)
        if not (local / "config.json").is_file():
            raise UnavailableError(
                f"{local} is not a model folder: it has no config.json.\n"
                "Fix: name a folder in Hugging Face layout (config.json, tokenizer.json, *.safetensors)."
            )
        stats = read_file_stats(local.resolve())
        check_base_files(local.resolve())
        if is_hub_id(base.name):
            logger.info(f"{base.name} is a local folder: using {local.resolve()}, not the hub's model of that name.")
        return LocalBase(str(local.resolve()), local.resolve(), file_stats=stats)
    if other := explain_other_base(local, base.name):
        raise UnavailableError(other)
    if not is_hub_id(base.name):
        raise UnavailableError(
            f"There is no base {base.name}: neither an embedded one ({', '.join(bundled_base_names())}), "
            "nor a folder, nor a hub id (OWNER/NAME)."
        )
    folder = find_or_download_base(base.name, base.revision)
    stats = read_file_stats(folder)
    check_base_files(folder)
    return LocalBase(base.name, folder, folder.name, stats)


def load_tokenizer(base: LocalBase) -> "PreTrainedTokenizerBase":
    """Load and try a base's tokenizer, and fit its eos and pad tokens to the model.

    Raises UnavailableError for a tokenizer that cannot be loaded or used, or has no end-of-sequence token.
    """
    from transformers import AutoTokenizer

    check_tokenizer_files(base.folder, base.name)
    try:
        tokenizer = AutoTokenizer.from_pretrained(base.folder, local_files_only=True, trust_remote_code=False)
    except BaseException as error:
        if not isinstance(error, Exception) and not is_rust_panic(error):
            raise
        raise UnavailableError(
            f"The tokenizer of {base.name} cannot be read: {describe_reading_error(error)}"
        ) from error
    try:
        call_with_timeout(
            lambda: tokenizer.decode(tokenizer(TOKENIZER_SAMPLE_TEXT)["input_ids"]),
            _TOKENIZER_TIMEOUT_SECONDS,
            f"The tokenizer of {base.name}",
        )
    except LoraChatError:
        raise
    except Exception as error:  # the settings load but cannot be used
        raise UnavailableError(
            f"The tokenizer of {base.name} cannot encode a sample text: {first_line(error)}"
        ) from error
    check_sentencepiece(base.folder, tokenizer, base.name)
    if tokenizer.chat_template is None:
        tokenizer.chat_template = read_processor_template(base.folder)
    config = read_config(base) if (base.folder / "config.json").is_file() else None
    fit_tokenizer(tokenizer, config, base.name, TOKENIZER_SAMPLE_TEXT)
    base.check_unchanged()
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:  # tokenizer.json may ask for both; lora_chat encodes every text completely and unpadded
        backend.no_truncation()
        backend.no_padding()
    return tokenizer


def read_max_positions(base: LocalBase) -> int | None:
    """Return the number of positions in a base's config, which limits its tokens; None if unknown."""
    positions = getattr(read_config(base).get_text_config(), "max_position_embeddings", None)
    return int(positions) if positions and positions > 0 else None  # XLNet's config has -1 for no limit


def read_model_type(base: LocalBase) -> str | None:
    """Return the `model_type` of a base's config."""
    model_type = getattr(read_config(base), "model_type", None)
    return str(model_type) if model_type else None


def load_meta_model(base: LocalBase) -> "PreTrainedModel":
    """Build a base's layers on the meta device, without weights. Raises UnavailableError."""
    return make_meta_model(read_config(base), base.name)


def read_config(base: LocalBase) -> "PretrainedConfig":
    """Return the base's config as Transformers loads it. Raises UnavailableError."""
    from transformers import AutoConfig

    try:
        config: PretrainedConfig = AutoConfig.from_pretrained(
            base.folder, local_files_only=True, trust_remote_code=False
        )
    except Exception as error:
        raise describe_unreadable_config(base.name, error) from error
    check_loaded_config(config, f"The config of {base.name}")
    return config


def load_base_model(
    base: LocalBase, precision: PrecisionPlan, *, is_random: bool = False, to_shard: bool = False
) -> "PreTrainedModel":
    """Load the frozen base on its device, quantized by bitsandbytes if the plan says so.

    The weights of a random model, which is only timed, are not compared with its config. A base that is sharded later
    is loaded on the CPU, without copies of its weights. Raises UnavailableError for
    unreadable weights, OutOfMemoryError if they do not fit, IntegrityError if the files lack weights of the model or
    contain others, or if a file in the folder makes Transformers load other weights.
    """
    import torch

    meta_model = None if is_random else check_weights(base)
    stored = None if is_random else read_stored_quantization(base.folder)
    if stored is not None:
        precision = with_stored_quantization(precision, stored)
    if precision.device == "cpu":
        release_freed_memory()  # quantization frees as much memory as it takes
    options: dict[str, Any] = {
        "dtype": getattr(torch, precision.dtype),
        "device_map": {"": 0 if precision.device == "cuda" and not to_shard else "cpu"},
        "local_files_only": True,
        "trust_remote_code": False,
        "use_safetensors": True,
        "output_loading_info": True,
    }
    num_memory_errors = count_gpu_memory_errors()
    try:
        config = read_config(base)
        if stored is not None and stored.mode == "none" and meta_model is not None:
            paths = find_weight_files(base.folder, config)
            model, loading_info = load_dequantized(base.name, paths, stored, config, type(meta_model), options)
        else:
            options |= make_quantization_options(precision, meta_model)
            with quantized_on(torch.device("cuda")) if to_shard and precision.device == "cuda" else nullcontext():
                model, loading_info = find_auto_class(config, base.name).from_pretrained(base.folder, **options)
    except LoraChatError:
        raise
    except Exception as error:
        # Transformers reports an error during quantization without its cause, so PyTorch's counter is compared.
        if is_out_of_memory(error) or count_gpu_memory_errors() > num_memory_errors:
            raise OutOfMemoryError(
                f"The base {base.name} does not fit into memory in mode {precision.mode}.",
                "a smaller base." if stored else "--set quantization.mode=4bit, or a smaller base.",
            ) from error
        raise UnavailableError(f"The weights of {base.name} cannot be loaded: {first_line(error)}") from error
    base.check_unchanged()
    if meta_model is not None:
        check_loaded_weights(base.name, loading_info, model, meta_model, read_config(base))
    if stored is not None:
        cast_unquantized_weights(model, options["dtype"])
    model.requires_grad_(False)
    model.config.output_attentions = False  # a config that returns them cannot be saved with other attention kernels
    disable_weight_repacking(model)
    if precision.device == "cpu":
        if precision.mode != "none":
            copy_mapped_weights(model)
        if not to_shard:
            cache_dense_weights(model)
        dequantize_on_the_fly(model)  # the layers without cached weights
    return model


def check_weights(base: LocalBase) -> "PreTrainedModel":
    """Return a base's model on the meta device, compared with the headers of the base's files.

    Raises UnavailableError or IntegrityError if the files are not those of the config.
    """
    config = read_config(base)
    paths = find_weight_files(base.folder, config)
    model = load_meta_model(base)
    check_weight_count(base.name, base.folder, model)
    shards = [path for path in paths if path.suffix == ".safetensors"]
    check_weight_headers(base.name, shards, model, config, read_stored_quantization(base.folder))
    return model
