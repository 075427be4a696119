"""A Modelfile beside a GGUF: template, stops and system message of training, for `ollama create`."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from lora_chat.data.encoding.chat_template import render_texts
from lora_chat.errors import RecipeError
from lora_chat.export.ollama_template import OllamaTemplate, derive_ollama_template
from lora_chat.export.parity.llama_cpp_runner import run_llama_cpp
from lora_chat.export.parity.samples import ParitySample

MODELFILE_NAME = "Modelfile"


def convert_chat_template(tokenizer: Any, samples: Sequence[ParitySample]) -> OllamaTemplate:
    """The chat template as Ollama can have it, checked on the prompts of held-out dialogues.

    Raises RecipeError where it cannot be written, before anything is merged.
    """
    if any(sample.tools for sample in samples):
        raise RecipeError("The dialogues have tools, which a Modelfile's template here cannot hold; take --to gguf.")
    if not any(sample.messages for sample in samples):
        raise RecipeError("The run was trained on plain text: it has no chat template that Ollama could use.")

    def render(messages: Any, add_generation_prompt: bool) -> str:
        return render_texts(tokenizer, [messages], add_generation_prompt=add_generation_prompt)[0]

    special = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
    return derive_ollama_template(render, [sample.messages for sample in samples if sample.messages], special)


def write_modelfile(
    gguf: Path, template: OllamaTemplate, stops: Sequence[str], system: str | None, context: int, work: Path
) -> None:
    """Write the Modelfile into the folder of a GGUF. Raises RecipeError for a system message that it cannot hold."""
    if system is not None and ('"""' in system or system.endswith('"')):
        raise RecipeError('The system message of training holds """ or ends with ": that ends a text in a Modelfile.')
    if unprintable := [c for c in system or "" if c not in "\t\r\n" and not c.isprintable()]:
        raise RecipeError(
            f"The system message of training holds {unprintable[0]!a}, which Ollama leaves out of a Modelfile: its "
            f"model "
            "would read another message. Export with --to gguf, and give the message where the model is used."
        )
    if unquotable := [text for text in (*stops, gguf.name) if not _is_quotable(text)]:
        raise RecipeError(
            f"A Modelfile cannot hold {unquotable[0]!a}: it would be read as more than a name or a stop string."
        )
    work.mkdir(exist_ok=True)
    template = _without_bos(template, run_llama_cpp({"do": "describe", "model": str(gguf)}, work)["beginning"])
    lines = [
        f"FROM ./{gguf.name}",
        f'TEMPLATE """{template.to_go()}"""',
        *([f'SYSTEM """{system}"""'] if system is not None else []),
        *(f'PARAMETER stop "{stop}"' for stop in stops),
        f"PARAMETER num_ctx {context}",
        "PARAMETER temperature 0",
    ]
    (gguf.parent / MODELFILE_NAME).write_text("\n".join(lines) + "\n", encoding="utf-8")


def _is_quotable(text: str) -> bool:
    """Whether a text between quotes is read as it stands: Ollama knows no escapes, and drops what is not printed."""
    return bool(text) and '"' not in text and text.isprintable() and text == text.strip()


def _without_bos(template: OllamaTemplate, beginning: str) -> OllamaTemplate:
    """Ollama puts the beginning of a text in front itself, where the GGUF says so; twice is not what was trained."""
    before, behind = template.role_wrappers["system"]
    return replace(
        template,
        leading_text=template.leading_text.removeprefix(beginning),
        role_wrappers={**template.role_wrappers, "system": (before.removeprefix(beginning), behind)},
    )
