"""Write a GGUF with a Modelfile for `ollama create`: chat template, stop strings and system message of training."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from lora_chat.data.encoding.chat_template import render_texts
from lora_chat.errors import UsageError
from lora_chat.export.gguf import GgufExporter
from lora_chat.export.ollama_template import Chat, OllamaTemplate, derive_ollama_template
from lora_chat.export.parity.llama_cpp_runner import run_llama_cpp
from lora_chat.export.parity.samples import ParitySample
from lora_chat.models.base_model import read_max_positions

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MODELFILE_NAME = "Modelfile"
_DEFAULT_CONTEXT_TOKENS = 4096
"""Context length in tokens, as Ollama's default; shorter if the base has fewer positions."""


class OllamaExporter(GgufExporter):
    """The writer of one merged GGUF and a Modelfile."""

    def check(self) -> None:
        """Raise UsageError if the chat template cannot be translated, UnavailableError without llama.cpp."""
        convert_chat_template(self._job.blend.tokenizer, self._job.samples)
        super().check()

    def write(self) -> Iterator[tuple[str, Path]]:
        """Write the GGUF, and then a Modelfile with the settings of training."""
        job, blend = self._job, self._job.blend
        template = convert_chat_template(blend.tokenizer, job.samples)
        for report_name, path in super().write():
            yield report_name, path
            stops = blend.tokenizer.convert_ids_to_tokens(list(blend.stop_ids))
            context = min(read_max_positions(blend.base) or _DEFAULT_CONTEXT_TOKENS, _DEFAULT_CONTEXT_TOKENS)
            write_modelfile(path, template, stops, job.system, context, job.work_folder / "modelfile")


def convert_chat_template(tokenizer: "PreTrainedTokenizerBase", samples: Sequence[ParitySample]) -> OllamaTemplate:
    """Translate the chat template for Ollama, and check it on the prompts of held-out dialogues.

    Raises UsageError if it cannot be translated.
    """
    if any(sample.tools for sample in samples):
        raise UsageError(
            "The dialogues have tools, which the template of the Modelfile does not support. "
            "Fix: export with --to gguf."
        )
    if not any(sample.messages for sample in samples):
        raise UsageError(
            "The run was trained on plain text, so it has no chat template for Ollama. Fix: export with --to gguf."
        )

    def render(messages: Chat, add_generation_prompt: bool) -> str:
        return render_texts(tokenizer, [messages], add_generation_prompt=add_generation_prompt)[0]

    special = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
    return derive_ollama_template(render, [sample.messages for sample in samples if sample.messages], special)


def write_modelfile(
    gguf: Path, template: OllamaTemplate, stops: Sequence[str], system: str | None, context: int, work: Path
) -> None:
    """Write the Modelfile into the folder of a GGUF.

    Raises UsageError for a system message, stop string or file name that a Modelfile cannot express.
    """
    if system is not None and ('"""' in system or system.endswith('"')):
        raise UsageError(
            'The system message of training contains """ or ends with ", which ends a text in a Modelfile. '
            "Fix: export with --to gguf, and give the message where the model is used."
        )
    if unprintable := [c for c in system or "" if c not in "\t\r\n" and not c.isprintable()]:
        raise UsageError(
            f"The system message of training contains {unprintable[0]!a}, which Ollama drops from a Modelfile, so the "
            "model would read another message. "
            "Fix: export with --to gguf, and give the message where the model is used."
        )
    if unquotable := [text for text in (*stops, gguf.name) if not _is_quotable(text)]:
        raise UsageError(
            f"A Modelfile cannot quote {unquotable[0]!a}: Ollama would read it as more than a name or a stop string. "
            "Fix: export with --to gguf."
        )
    if not template.has_system:
        system = None
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
    """Return whether Ollama reads a quoted text unchanged; it has no escapes and drops unprintable characters."""
    return bool(text) and '"' not in text and text.isprintable() and text == text.strip()


def _without_bos(template: OllamaTemplate, bos: str) -> OllamaTemplate:
    """Remove the BOS token from the template, because Ollama adds it if the GGUF requires it."""
    wrappers = dict(template.role_wrappers)
    if template.has_system:
        before, after = wrappers["system"]
        wrappers["system"] = before.removeprefix(bos), after
    return replace(template, leading_text=template.leading_text.removeprefix(bos), role_wrappers=wrappers)
