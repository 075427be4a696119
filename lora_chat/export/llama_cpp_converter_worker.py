"""Run one of llama.cpp's converters in a process of its own: SCRIPT, then its arguments.

The converters load tokenizers with `trust_remote_code=True`, so a base's tokenizer_config.json could name code that
would run. Here no such code is ever loaded.
"""

import os
import runpy
import sys
from pathlib import Path
from typing import Any, NoReturn

import transformers.dynamic_module_utils as dynamic


def refuse_remote_code(*_: Any, **__: Any) -> NoReturn:
    """Raise ValueError instead of loading a class from a file of the model."""
    raise ValueError("The model brings code of its own, which lora_chat does not run.")


def forbid_remote_code() -> None:
    """Make transformers treat every `trust_remote_code` as False. Must run before its auto classes are imported."""
    resolve = dynamic.resolve_trust_remote_code

    def never(trust_remote_code: Any, *arguments: Any, **options: Any) -> Any:
        return resolve(False, *arguments, **options)

    dynamic.resolve_trust_remote_code = never
    dynamic.get_class_from_dynamic_module = refuse_remote_code


if __name__ == "__main__":
    forbid_remote_code()
    sys.pycache_prefix = str(Path.cwd() / "pycache")  # compiled files beside the scripts are not part of their digest
    os.environ.pop("NO_LOCAL_GGUF", None)  # with it the scripts would not use the `gguf` beside them
    sys.argv = sys.argv[1:]
    sys.path.insert(0, str(Path(sys.argv[0]).parent))  # they import modules that lie beside them
    runpy.run_path(sys.argv[0], run_name="__main__")
