"""Format data statistics and example dialogues for the terminal, readable without colour."""

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from lora_chat.config.audit import finding_title
from lora_chat.data.dataset import DialogueSet
from lora_chat.data.encoding.encode import IGNORE_INDEX, EncodedDialogue
from lora_chat.data.parsing.row_notes import format_notes
from lora_chat.data.statistics import DataStatistics
from lora_chat.data.storage.ledger import Ledger
from lora_chat.system.console import Highlight, ResultPart, display_path
from lora_chat.system.sanitize import sanitize_line, sanitize_lines

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_BAR_WIDTH = 40
_MAX_SHOWN_TOKENS = 6
_LARGE_ROWS_FACTOR = 2
"""Tokens in rows for each token in the longest rows of dialogues, from which settings that need fewer are shown."""


def statistics_summary(statistics: DataStatistics) -> list[str]:
    """Return the lines that `sft` prints."""
    ledger = statistics.total
    lines = [
        f"Data      {_format_files(ledger)}: {_format_line_counts(ledger)}",
        f"Dialogues {statistics.train_dialogues:,} to train on, {_format_held_out(statistics)}; longest "
        f"{ledger.longest:,} tokens; loss on {ledger.supervised_tokens:,} of {ledger.tokens:,} tokens",
    ]
    lines += [f"Rows      {line}" for line in _format_rows(ledger)]
    if ledger.loss_on_prompts:
        lines.append(f"Loss      on prompts too in {ledger.loss_on_prompts:,} dialogues (loss: all)")
    limits = dict.fromkeys(source.limit for source in statistics.sources if source.limit is not None)
    if limits:
        lines.append(f"Limited   to the first {' or '.join(f'{limit:,}' for limit in limits)} rows of a source")
    if statistics.thinking:
        lines.append(f"Reasoning {statistics.thinking}")
    if ledger.thoughtless:
        lines.append(
            f"Reasoning the chat template opens reasoning in the prompt, and {ledger.thoughtless:,} of "
            f"{ledger.replies:,} replies have none: these teach the model to answer without reasoning"
        )
    lines += [f"Files     {sanitize_line(note)}" for source in statistics.sources for note in source.file_notes]
    lines += [f"Tokens    {line}" for line in _format_tokens(ledger)]
    lines += [f"Rows      {line}" for line in format_notes(ledger.notes, ledger.unused_keys)]
    if ledger.redacted:
        lines.append(f"Redacted  {ledger.redacted:,} secrets or personal data, in a cleaned copy")
    lines += [f"Left out  {line}" for line in _format_left_out(statistics)]
    return lines


def _format_left_out(statistics: DataStatistics) -> Iterator[str]:
    """Yield the number of dialogues that the audit leaves out, by the kind of their findings."""
    if statistics.left_out:
        kinds = ", ".join(f"{count:,} {finding_title(kind)}" for kind, count in statistics.left_out.items())
        yield f"{sum(statistics.left_out.values()):,} dialogues, by the audit: {kinds}"


def _format_rows(ledger: Ledger) -> Iterator[str]:
    """Yield why there are more rows than dialogues, and the tokens that this costs, with settings that need fewer."""
    if ledger.rows <= ledger.dialogues:
        return
    yield (
        f"{ledger.rows:,}, one for each reply: this chat template rewrites earlier turns, "
        "and each reply is trained after the prompt that inference shows"
    )
    costs = f"{ledger.tokens:,} tokens in rows, {ledger.dialogue_tokens:,} in the longest row of each dialogue"
    if ledger.tokens < _LARGE_ROWS_FACTOR * ledger.dialogue_tokens:
        yield costs
        return
    yield (
        f"{costs}: {ledger.tokens / ledger.dialogue_tokens:.1f} times as many. For fewer: data.turns=last trains only "
        "the last reply of each dialogue; a smaller data.max_length with data.over_long=cut keeps the rows that fit"
    )


def _format_held_out(statistics: DataStatistics) -> str:
    """Format the number of held-out dialogues; without any, the loss is not compared with the base's."""
    if statistics.test_dialogues:
        validation = f"{statistics.validation_dialogues:,}" if statistics.validation_dialogues else "none"
        return f"{validation} for validation, {statistics.test_dialogues:,} for the test"
    if not statistics.validation_dialogues:
        return "none held out (no validation loss is measured)"
    return f"{statistics.validation_dialogues:,} held out"


def _format_files(ledger: Ledger) -> str:
    """Format the name of a file, or the number of files, and their formats."""
    files = ledger.files
    formats = ", ".join(sorted(set(files.values())))
    name = display_path(Path(next(iter(files)))) if len(files) == 1 else f"{len(files)} files"
    return f"{name}, {formats}"


def _format_line_counts(ledger: Ledger) -> str:
    """Format the number of lines and its parts, without parts that are zero."""
    parts = [f"{ledger.accepted:,} accepted"]
    other_counts = {
        "blank": ledger.blank,
        "faulty and left out": ledger.refused,
        "too long and left out": ledger.dropped,
        "marked as unwanted and left out": ledger.unwanted,
    }
    parts += [f"{count:,} {label}" for label, count in other_counts.items() if count]
    cut = f" ({ledger.cut:,} of them cut to length)" if ledger.cut else ""
    return f"{ledger.lines:,} lines = {' + '.join(parts)}{cut}"


def format_statistics(statistics: DataStatistics) -> str:
    """Return the text that `lora-chat data` prints."""
    ledger = statistics.total
    lines = []
    for source in statistics.sources:
        weight = f", weight {source.weight:g}" if source.weight != 1 else ""
        lines.append(f"{sanitize_line(source.name)}{weight}")
        formats = dict.fromkeys(source.ledger.files.values())
        lines.append(f"  recognised  {', '.join(formats)}")
        lines += [f"  {'files':<10}  {sanitize_line(note)}" for note in source.file_notes]
        lines.append(f"  ledger      {_format_line_counts(source.ledger)}")
        if source.limit is not None:
            lines.append(f"  limited to  the first {source.limit:,} rows")
        notes = format_notes(source.ledger.notes, source.ledger.unused_keys)
        lines += [f"  {'rows':<10}  {text}" for text in notes]
        lines += [f"  {'refused':<10}  {text}" for text in source.ledger.refusals]
        lines += [f"  {'too long':<10}  {text}" for text in source.ledger.over_long]
    lines += [
        "",
        f"dialogues     {statistics.train_dialogues:,} to train on, {_format_held_out(statistics)}, "
        f"{statistics.duplicates:,} duplicates",
        *(f"left out      {line}" for line in _format_left_out(statistics)),
        f"rows          {statistics.train_rows:,} an epoch",
        *(f"              {line}" for line in _format_rows(ledger)),
        f"tokens        {ledger.tokens:,}, supervised {ledger.supervised_tokens:,} "
        f"({ledger.supervised_tokens / max(1, ledger.tokens):.0%})",
        f"stop tokens   {ledger.stops:,} of {ledger.replies:,} replies end with a trained one"
        + (f" ({ledger.stops / ledger.replies:.0%})" if ledger.replies else ""),
        *([f"loss          on prompts too in {ledger.loss_on_prompts:,} dialogues"] if ledger.loss_on_prompts else []),
        *([f"thoughts      {statistics.thinking}"] if statistics.thinking else []),
        *(f"added tokens  {line}" for line in _format_tokens(ledger)),
        "",
        f"{'':<14}{'tokens':>12}{'supervised':>12}",
        *_format_roles(ledger),
        "",
        *_format_histogram(statistics),
        "",
        f"packing       {statistics.packing.packed:.0%} of positions would contain a token in rows of "
        f"{statistics.packing.packed_to:,}, {statistics.packing.padded:.0%} in padded batches of "
        f"{statistics.packing.micro_batch_size}",
    ]
    return "\n".join(lines)


def _format_tokens(ledger: Ledger) -> Iterator[str]:
    """Yield how often added tokens occur in message text, as tokens and as plain characters."""
    if ledger.kept_tokens:
        yield f"kept in message text: {_format_token_counts(ledger.kept_tokens)}"
    if ledger.plain_tokens:
        yield (
            f"written as plain characters: {_format_token_counts(ledger.plain_tokens)} (to keep them as tokens: "
            "data.keep_tokens)"
        )


def _format_token_counts(counts: dict[str, int]) -> str:
    """Format the most frequent tokens with their counts."""
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    shown = [f"{sanitize_line(name, 60)} {count:,} times" for name, count in ordered[:_MAX_SHOWN_TOKENS]]
    return ", ".join([*shown, *([f"{len(ordered) - len(shown)} more"] if len(ordered) > len(shown) else [])])


def _format_roles(ledger: Ledger) -> Iterator[str]:
    """Yield a line for each role, and one for the text of the template."""
    rows = [(role, tokens, supervised) for role, (tokens, supervised) in ledger.roles.items()]
    template_tokens = ledger.tokens - sum(tokens for _, tokens, _ in rows)
    template_supervised = ledger.supervised_tokens - sum(supervised for _, _, supervised in rows)
    for name, tokens, supervised in [*rows, ("template", template_tokens, template_supervised)]:
        yield f"{name:<14}{tokens:>12,}{supervised:>12,}"


def _format_histogram(statistics: DataStatistics) -> Iterator[str]:
    """Yield a line for each bar."""
    largest = max(count for _, _, count in statistics.histogram)
    yield "length in tokens"
    for low, high, count in statistics.histogram:
        bar = "#" * (-(-count * _BAR_WIDTH // largest)) if count else ""
        yield f"{low:>7,} - {high:>6,} {count:>8,} {bar}"


def format_dialogues(dialogues: DialogueSet, tokenizer: "PreTrainedTokenizerBase", count: int) -> Iterator[ResultPart]:
    """Yield the first dialogues as the model reads them; tokens with loss are highlighted."""
    for path, line, rows in islice(dialogues.read_rows(), count):
        for row in rows:
            tokens = f"{len(row.input_ids)} tokens, {row.supervised_tokens} supervised"
            yield f"\n\n--- {display_path(Path(path))}:{line}, {tokens}\n"
            for text, has_loss in split_by_loss(row, tokenizer):
                yield Highlight(sanitize_lines(text)) if has_loss else sanitize_lines(text)


def split_by_loss(row: EncodedDialogue, tokenizer: "PreTrainedTokenizerBase") -> Iterator[tuple[str, bool]]:
    """Yield the spans with and without loss."""
    begin = 0
    mask = [label != IGNORE_INDEX for label in row.labels]
    for end in range(1, len(mask) + 1):
        if end == len(mask) or mask[end] != mask[begin]:
            yield tokenizer.decode(row.input_ids[begin:end]), mask[begin]
            begin = end
