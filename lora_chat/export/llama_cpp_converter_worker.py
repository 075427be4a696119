"""Run a converter of llama.cpp in a separate process; the arguments are the script and its arguments.

The converters load tokenizers with `trust_remote_code=True`, so the tokenizer_config.json of a base could name code
that would run. This process never loads such code.
"""

import importlib
import json
import os
import runpy
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

import transformers.dynamic_module_utils as dynamic

_LIBRARIES = (
    "torch",
    "transformers.activations",
    "transformers.models.auto.modeling_auto",
    "transformers.models.auto.tokenization_auto",
)
"""What the converters import of large libraries, with nearly all that these import themselves."""


def refuse_remote_code(*_: object, **__: object) -> NoReturn:
    """Raise ValueError instead of loading a class from a file of the model."""
    raise ValueError("The model contains code, which lora_chat does not run.")


def forbid_remote_code() -> None:
    """Make transformers treat every `trust_remote_code` as False. Must run before its auto classes are imported."""
    resolve = dynamic.resolve_trust_remote_code

    def resolve_as_false(trust_remote_code: object, *arguments: object, **options: object) -> object:
        return resolve(False, *arguments, **options)

    dynamic.resolve_trust_remote_code = resolve_as_false
    dynamic.get_class_from_dynamic_module = refuse_remote_code


def take_option(arguments: list[str], name: str) -> str | None:
    """Remove an option from the arguments and return its value."""
    if name not in arguments:
        return None
    position = arguments.index(name)
    value = arguments[position + 1]
    del arguments[position : position + 2]
    return value


def set_space_prefix(prefix: bool) -> None:
    """Write a space prefix beside each SentencePiece tokenizer, in place of the converter's own."""
    gguf = importlib.import_module("gguf")  # from the folder of the converters
    stock = gguf.GGUFWriter.add_tokenizer_model

    def add_prefix(writer: Any, _: object = None) -> None:
        writer.add_bool(gguf.Keys.Tokenizer.ADD_PREFIX, prefix)

    def add_tokenizer_model(writer: Any, model: str) -> None:
        stock(writer, model)
        if model == "llama":  # llama.cpp's name for SentencePiece's BPE
            add_prefix(writer)

    gguf.GGUFWriter.add_tokenizer_model = add_tokenizer_model
    gguf.GGUFWriter.add_add_space_prefix = add_prefix


def adapt_converters(added_fields: Mapping[str, object]) -> None:
    """Add fields to each config, and leave out heads for multi-token prediction, which Transformers never saves.

    The converters read a config through Transformers 5, which renames fields such as `rotary_pct`.
    """
    model_class = importlib.import_module("conversion.base").ModelBase  # from the folder of the converters
    stock = model_class.load_hparams

    def load_fields(*arguments: object, **options: object) -> dict[str, object]:
        return {**added_fields, **stock(*arguments, **options)}

    model_class.load_hparams = staticmethod(load_fields)
    model_class.no_mtp = True


if __name__ == "__main__":
    forbid_remote_code()
    for name in _LIBRARIES:  # with their compiled files, which Python does not find after the next line
        importlib.import_module(name)
    sys.pycache_prefix = str(Path.cwd() / "pycache")  # the digest does not cover compiled files beside the scripts
    os.environ.pop("NO_LOCAL_GGUF", None)  # it would keep the scripts from using the `gguf` beside them
    sys.argv = sys.argv[1:]
    scripts = Path(sys.argv[0]).parent
    sys.path[:0] = [str(scripts), str(scripts / "gguf-py")]  # they import the modules beside them
    space_prefix, fields = take_option(sys.argv, "--space-prefix"), take_option(sys.argv, "--added-fields")
    if (scripts / "conversion" / "base.py").is_file():  # older releases have one script
        adapt_converters(json.loads(fields or "{}"))
    if space_prefix is not None:
        set_space_prefix(space_prefix == "yes")
    runpy.run_path(sys.argv[0], run_name="__main__")
