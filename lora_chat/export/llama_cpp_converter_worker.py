"""Run a converter of llama.cpp in a separate process; the arguments are the script and its arguments.

The converters load tokenizers with `trust_remote_code=True`, so the tokenizer_config.json of a base could name code
that would run. This process never loads such code.
"""

import os
import runpy
import sys
from pathlib import Path
from typing import NoReturn

import transformers.dynamic_module_utils as dynamic


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


if __name__ == "__main__":
    forbid_remote_code()
    sys.pycache_prefix = str(Path.cwd() / "pycache")  # the digest does not cover compiled files beside the scripts
    os.environ.pop("NO_LOCAL_GGUF", None)  # it would keep the scripts from using the `gguf` beside them
    sys.argv = sys.argv[1:]
    sys.path.insert(0, str(Path(sys.argv[0]).parent))  # they import the modules beside them
    runpy.run_path(sys.argv[0], run_name="__main__")
