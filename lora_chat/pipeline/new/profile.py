"""The profile of training data: counts, lengths, languages, turns and labels, from parsed rows."""

import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from lora_chat.data.dialogue import Dialogue, Document, Message
from lora_chat.data.parsing.line_counts import LineCounts, check_line_counts
from lora_chat.data.parsing.rendered_chats import check_rendered_chats
from lora_chat.data.parsing.rows import parse_chunk, read_chunks
from lora_chat.evaluation.measurement import ReplyItem
from lora_chat.pipeline.new.find_source import FoundSource
from lora_chat.pipeline.new.languages import LanguageShare, measure_languages

MAX_PROFILED_ROWS = 20_000
"""Rows that are parsed for a profile. All rows are read when the recipe is checked."""
MAX_LISTED_REPLIES = 1_000
"""Different answers that are counted."""
_MAX_ITEMS, _MAX_TEXTS = 2_000, 1_000
"""Dialogues whose first answer is looked at, and texts whose language is."""


@dataclass(frozen=True)
class CharacterLengths:
    """Characters of texts."""

    median: int
    longest: int
    total: int


@dataclass(frozen=True)
class DataProfile:
    """The properties of training data that decide on the settings of a recipe."""

    data_format: str
    rows: int
    """Number of dialogues or documents."""
    is_part: bool
    """Whether only the first MAX_PROFILED_ROWS rows were read."""
    prompts: CharacterLengths
    """Texts of user messages, or of documents."""
    replies: CharacterLengths
    exchanges: float
    """Mean number of replies of a dialogue."""
    prompt_languages: tuple[LanguageShare, ...]
    reply_languages: tuple[LanguageShare, ...]
    has_system: bool
    """Whether a dialogue has a system message."""
    has_calls: bool
    """Whether a reply calls a tool."""
    has_tools: bool
    """Whether a dialogue has tools, their calls or their results."""
    first_replies: tuple[str, ...]
    """Different first answers of all dialogues in their order; more than MAX_LISTED_REPLIES are not counted."""
    items: tuple[ReplyItem, ...]
    """First answer of each dialogue, with the message before it, up to a limit."""
    reply_texts: tuple[str, ...]
    """Replies with their calls, up to a limit."""

    @property
    def is_text(self) -> bool:
        """Return whether the rows are documents."""
        return self.data_format == "text"

    @property
    def languages(self) -> tuple[str, ...]:
        """Return the languages of prompts and replies, those of the replies first."""
        shares = (*self.reply_languages, *self.prompt_languages)
        return tuple(dict.fromkeys(share.language for share in shares))

    def as_dict(self) -> dict[str, object]:
        """Return the profile without texts, for JSON."""
        return {
            "format": self.data_format,
            "rows": self.rows,
            "rows_are_a_part": self.is_part,
            "exchanges": self.exchanges,
            "prompt_characters": asdict(self.prompts),
            "reply_characters": asdict(self.replies),
            "prompt_languages": [asdict(share) for share in self.prompt_languages],
            "reply_languages": [asdict(share) for share in self.reply_languages],
            "has_system_messages": self.has_system,
            "has_tool_calls": self.has_calls,
        }


def read_profile(source: FoundSource) -> DataProfile:
    """Read the first rows of the data and return their profile.

    Raises DataError with file and line of faulty rows, as `sft` does.
    """
    options, section = source.local.reading_options, source.section
    counts = LineCounts()
    units: list[Dialogue | Document] = []
    formats: Counter[str] = Counter()
    for chunk in read_chunks(source.local.paths, options):
        parsed, chunk_counts = parse_chunk(chunk, options)
        counts.add(chunk_counts)
        units += parsed
        formats[str(chunk.data_format)] += len(parsed)
        if len(units) >= MAX_PROFILED_ROWS:
            break
    check_line_counts(source.local.name, counts, section.skip_bad)
    if section.rendered_chats == "refuse":
        check_rendered_chats(source.local.name, counts.notes)
    return _measure(units, formats.most_common(1)[0][0])


def _measure(units: Sequence[Dialogue | Document], data_format: str) -> DataProfile:
    """Return the profile of dialogues and documents."""
    dialogues = [unit for unit in units if isinstance(unit, Dialogue)]
    documents = [unit.text for unit in units if isinstance(unit, Document)]
    messages = [message for dialogue in dialogues for message in dialogue.messages]
    prompts = [message.content for message in messages if message.role == "user"] + documents
    answers = [message for message in messages if message.role == "assistant"]
    replies = [message.content for message in answers]
    return DataProfile(
        data_format=data_format,
        rows=len(dialogues) + sum(unit.is_first_piece for unit in units if isinstance(unit, Document)),
        is_part=len(units) >= MAX_PROFILED_ROWS,
        prompts=_measure_characters(prompts),
        replies=_measure_characters(replies),
        exchanges=len(answers) / max(1, len(dialogues)),
        prompt_languages=measure_languages(_thin_out(prompts)),
        reply_languages=measure_languages(_thin_out(replies)),
        has_system=any(message.role == "system" for message in messages),
        has_calls=any(message.tool_calls for message in answers),
        has_tools=any(dialogue.tools for dialogue in dialogues)
        or any(message.tool_calls or message.role == "tool" for message in messages),
        first_replies=_list_first_replies(dialogues),
        items=tuple(_list_items(dialogues)),
        reply_texts=tuple(_thin_out([_write_reply(message) for message in answers])),
    )


def _list_first_replies(dialogues: Sequence[Dialogue]) -> tuple[str, ...]:
    """Return the different first answers of dialogues, at most one more than MAX_LISTED_REPLIES."""
    replies: dict[str, None] = {}
    for dialogue in dialogues:
        if dialogue.first_answer is not None:
            replies[dialogue.messages[dialogue.first_answer].content] = None
        if len(replies) > MAX_LISTED_REPLIES:
            break
    return tuple(replies)


def _write_reply(message: Message) -> str:
    """Return a reply with its calls, about as long as a chat template writes them."""
    return message.content + "".join(
        f'{{"name": "{call.name}", "arguments": {call.arguments}}}' for call in message.tool_calls
    )


def _measure_characters(texts: Sequence[str]) -> CharacterLengths:
    lengths = [len(text) for text in texts] or [0]
    return CharacterLengths(round(statistics.median(lengths)), max(lengths), sum(lengths))


def _thin_out(texts: Sequence[str]) -> Sequence[str]:
    """Return at most `_MAX_TEXTS` texts from all parts of the data."""
    return texts[:: max(1, -(-len(texts) // _MAX_TEXTS))]


def _list_items(dialogues: Sequence[Dialogue]) -> list[ReplyItem]:
    """Return the first answers with their prompts, as the evaluation uses them, from all parts of the data."""
    items = []
    for dialogue in dialogues[:: max(1, -(-len(dialogues) // _MAX_ITEMS))]:
        index = dialogue.first_answer
        if index is not None and index > 0:
            reply, prompt = dialogue.messages[index], dialogue.messages[index - 1]
            items.append(ReplyItem((), prompt.content, reply.content, reply.tool_calls))
    return items
