"""A Modelfile beside a GGUF: template, stops and system message of training, for `ollama create`."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from lora_chat.data.encoding.chat_template import render_texts
from lora_chat.errors import RecipeError
from lora_chat.export.ollama_template import OllamaTemplate, find_ollama_template
from lora_chat.export.parity.llama_cpp_runner import run_llama_cpp
from lora_chat.export.parity.samples import Probe

MODELFILE = "Modelfile"


def find_template(tokenizer: Any, probes: Sequence[Probe]) -> OllamaTemplate:
    """The chat template as Ollama can have it, checked on the prompts of held-out dialogues.

    Raises RecipeError where it cannot be written, before anything is merged.
    """
    if any(probe.tools for probe in probes):
        raise RecipeError("The dialogues have tools, which a Modelfile's template here cannot hold; take --to gguf.")
    if not any(probe.messages for probe in probes):
        raise RecipeError("The run was trained on plain text: it has no chat template that Ollama could use.")

    def render(messages: Any, reply_follows: bool) -> str:
        return render_texts(tokenizer, [messages], reply_follows=reply_follows)[0]

    special = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
    return find_ollama_template(render, [probe.messages for probe in probes if probe.messages], special)


def write_modelfile(
    gguf: Path, template: OllamaTemplate, stops: Sequence[str], system: str | None, context: int, work: Path
) -> None:
    """Write the Modelfile into the folder of a GGUF. Raises RecipeError for a system message that it cannot hold."""
    if system is not None and ('"""' in system or system.endswith('"')):
        raise RecipeError('The system message of training holds """ or ends with ": that ends a text in a Modelfile.')
    if lost := [c for c in system or "" if c not in "\t\r\n" and not c.isprintable()]:
        raise RecipeError(
            f"The system message of training holds {lost[0]!a}, which Ollama leaves out of a Modelfile: its model "
            "would read another message. Export with --to gguf, and give the message where the model is used."
        )
    if odd := [text for text in (*stops, gguf.name) if not _is_plain(text)]:
        raise RecipeError(f"A Modelfile cannot hold {odd[0]!a}: it would be read as more than a name or a stop string.")
    work.mkdir(exist_ok=True)
    template = _without_beginning(template, run_llama_cpp({"do": "describe", "model": str(gguf)}, work)["beginning"])
    lines = [
        f"FROM ./{gguf.name}",
        f'TEMPLATE """{template.as_go()}"""',
        *([f'SYSTEM """{system}"""'] if system is not None else []),
        *(f'PARAMETER stop "{stop}"' for stop in stops),
        f"PARAMETER num_ctx {context}",
        "PARAMETER temperature 0",
    ]
    (gguf.parent / MODELFILE).write_text("\n".join(lines) + "\n", encoding="utf-8")


def _is_plain(text: str) -> bool:
    """Whether a text between quotes is read as it stands: Ollama knows no escapes, and drops what is not printed."""
    return bool(text) and '"' not in text and text.isprintable() and text == text.strip()


def _without_beginning(template: OllamaTemplate, beginning: str) -> OllamaTemplate:
    """Ollama puts the beginning of a text in front itself, where the GGUF says so; twice is not what was trained."""
    before, behind = template.around["system"]
    return replace(
        template,
        head=template.head.removeprefix(beginning),
        around={**template.around, "system": (before.removeprefix(beginning), behind)},
    )
