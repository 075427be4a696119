"""The check that a server's prompts are the prompts of training, token by token."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from lora_chat.data.dialogue import ChatMessage, Dialogue, Message, ToolDescription
from lora_chat.data.encoding.encode import DialogueEncoder, EncodedDialogue
from lora_chat.data.encoding.thinking_switch import has_thought, read_thinking
from lora_chat.data.parsing.rows import ReadingOptions, parse_chunk, read_chunks
from lora_chat.errors import DataError, IntegrityError
from lora_chat.export.parity.default_prompts import DEFAULT_QUESTIONS
from lora_chat.export.parity.reference import ModelReference, render_stated_prompts
from lora_chat.pipeline.admitted_model import AdmissionCheck
from lora_chat.pipeline.open_adapter import OpenAdapter
from lora_chat.pipeline.served_prompt import render_served_prompt
from lora_chat.runs.run_folder import RunFolder

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_MAX_DIALOGUES = 24
"""Number of held-out dialogues whose prompts are compared."""
_SAMPLE_REPLY = "Yes."


@dataclass(frozen=True)
class _TrainedPrompt:
    """A prompt of training, and the request that must give it."""

    ids: list[int]
    """Ids before the first token of the reply."""
    messages: Sequence[ChatMessage]
    tools: Sequence[ToolDescription] | None
    reply: ChatMessage


def check_prompts(opened: OpenAdapter, stop_ids: Sequence[int], reference: ModelReference | None) -> AdmissionCheck:
    """Compare the prompts of held-out dialogues, or of built-in questions, with those that training encodes.

    Raises IntegrityError for a prompt with other ids, DataError for one that the server cannot render.
    """
    tokenizer = opened.adapter.tokenizer
    dialogues, kind = _read_held_out(opened.training_run), "held-out dialogues"
    if not dialogues:
        dialogues, kind = _make_default_dialogues(opened.system), "built-in questions"
    prompts = list(_encode_prompts(dialogues, tokenizer, stop_ids))
    for prompt in prompts:
        _check_prompt(prompt, tokenizer, stop_ids, opened.system)
    stated = len(render_stated_prompts(reference, tokenizer, opened.system)) if reference else 0
    in_training = f", and of {stated} built-in questions those that training recorded" if stated else ""
    if not prompts:
        return AdmissionCheck("prompts", None, f"training encodes none of the {kind}{in_training}")
    count = f"{len(prompts)} prompts of {kind}"
    return AdmissionCheck("prompts", True, f"{count} have the token ids of training{in_training}")


def _read_held_out(run: RunFolder | None) -> list[Dialogue]:
    """Return the first held-out dialogues of a run; none if it has only plain text."""
    if run is None:
        return []
    path = next((path for path in (run.validation, run.test) if path.is_file()), None)
    if path is None:
        return []
    dialogues: list[Dialogue] = []
    options = ReadingOptions(limit=_MAX_DIALOGUES)
    for chunk in read_chunks([path], options):
        parsed, counts = parse_chunk(chunk, options)
        if counts.refused:
            raise IntegrityError(f"{path} is damaged: {counts.refusals[0]}")
        dialogues += [unit for unit in parsed if isinstance(unit, Dialogue)]
    return dialogues


def _make_default_dialogues(system: str | None) -> list[Dialogue]:
    """Return dialogues of one question and a short reply."""
    head = (Message("system", system),) if system is not None else ()
    return [
        Dialogue((*head, Message("user", question), Message("assistant", _SAMPLE_REPLY)))
        for question in DEFAULT_QUESTIONS
    ]


def _encode_prompts(
    dialogues: Sequence[Dialogue], tokenizer: "PreTrainedTokenizerBase", stop_ids: Sequence[int]
) -> Iterator[_TrainedPrompt]:
    """Yield the prompt before each reply that training would train. Loss on prompts changes no ids."""
    plain = [replace(dialogue, loss_on_prompts=False) for dialogue in dialogues]
    for dialogue, rows in zip(plain, DialogueEncoder(tokenizer, stop_ids).encode(plain), strict=True):
        for row in () if isinstance(rows, DataError) else rows:
            yield from _split_row(dialogue, row)


def _split_row(dialogue: Dialogue, row: EncodedDialogue) -> Iterator[_TrainedPrompt]:
    """Yield the prompts of an encoded row; a reply that begins its dialogue has none."""
    begins = {end: begin for begin, end in row.supervised_spans}
    for count, end in row.reply_ends:
        if count > 1 and end in begins:
            messages = dialogue.as_dicts
            yield _TrainedPrompt(
                row.input_ids[: begins[end]], messages[: count - 1], dialogue.tool_list, messages[count - 1]
            )


def _check_prompt(
    prompt: _TrainedPrompt, tokenizer: "PreTrainedTokenizerBase", stop_ids: Sequence[int], system: str | None
) -> None:
    """Raise IntegrityError unless the server renders a prompt with the ids of training."""
    messages = list(prompt.messages)
    if len(messages) > 1 and messages[0] == {"role": "system", "content": system}:
        messages = messages[1:]  # the server adds it
    thinking, trained = read_thinking(tokenizer), prompt.ids
    arguments: dict[str, object] | None = None
    if thinking is not None:
        chosen = thinking.choose(prompt.reply)
        arguments = thinking.switch.arguments(chosen)
        switched = render_served_prompt(tokenizer, stop_ids, system, messages, prompt.tools, arguments)
        # Training writes the empty block of a reply without thoughts after the prompt, and it carries no loss.
        if not has_thought(prompt.reply) and trained[: len(switched)] == switched:
            trained = switched
        if chosen == thinking.default:
            arguments = None  # a request names no position of the switch
    served = render_served_prompt(tokenizer, stop_ids, system, messages, prompt.tools, arguments)
    if served == trained:
        return
    pairs = zip(served, trained, strict=False)
    first = next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(served), len(trained)))
    raise IntegrityError(
        f"the server's prompt has other token ids than training: {len(served)} and {len(trained)} ids, "
        f"different from position {first} on"
    )
