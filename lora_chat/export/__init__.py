"""Merge adapters, and write them in the formats of other programs.

- converter_failures: turn the output of a failed converter into one sentence
- exporter: write a format file by file, and check each file with the program that reads it
- formats: the tables of export formats and GGUF types
- gguf: write the merged model, or only the adapter, as a GGUF
- gguf_conversion: convert a model folder, with all that llama.cpp's converter needs
- llama_cpp_converter_worker: the separate process in which a converter of llama.cpp runs
- llama_cpp_converters: fetch, check and run the converters of llama.cpp
- merge: merge adapters into a 16-bit base, and check the written model
- merged_config: the config.json of a merged model, for readers of other versions
- merged_generation: the generation settings of a merged model
- merged_tokenizer: the tokenizer and processor files of a merged model
- mlx_adapter: write the adapter as a folder for mlx-lm
- ollama: write a GGUF with a Modelfile for Ollama
- ollama_template: translate a chat template from Jinja to Go
- peft: write the adapter as a plain PEFT folder
- parity/: is the exported model the adapted model?
"""

import sys
from importlib import import_module
from types import ModuleType


class _CallablePackage(ModuleType):
    """This package, which is also the function `export` of the Python API, because both have the same name."""

    def __call__(self, *arguments: object, **keywords: object) -> object:
        """Call `lora_chat.api.export`."""
        return import_module("lora_chat.api").export(*arguments, **keywords)


sys.modules[__name__].__class__ = _CallablePackage
