"""How the account of the data looks, and dialogues with what carries loss; readable without colour."""

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_chat.data.dataset import DialogueSet
from lora_chat.data.encoding.encode import IGNORE_INDEX, EncodedDialogue
from lora_chat.data.statistics import Account
from lora_chat.system.console import Highlight, Part, shown
from lora_chat.system.sanitize import visible, visible_lines

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_BAR = 40


def short_account(account: Account) -> list[str]:
    """The lines that `sft` prints."""
    ledger = account.total
    lines = [
        f"Data      {_files(ledger)}: {_sum(ledger)}",
        f"Dialogues {account.train_dialogues:,} to train on, {account.validation_dialogues:,} held out; longest "
        f"{ledger['longest']:,} tokens; loss on {ledger['supervised_tokens']:,} of {ledger['tokens']:,} tokens",
    ]
    if ledger["rows"] > ledger["dialogues"]:
        lines.append(
            f"Rows      {ledger['rows']:,}, one for each reply: this chat template rewrites earlier turns, "
            "and each reply is trained behind what inference will show it"
        )
    if ledger["thoughtless"]:
        lines.append(
            f"Thoughts  the chat template opens thoughts in the prompt, and {ledger['thoughtless']:,} of "
            f"{ledger['replies']:,} replies have none: with these the model learns to answer at once"
        )
    if ledger["redacted"]:
        lines.append(f"Redacted  {ledger['redacted']:,} secrets or personal data, in a cleaned copy")
    return lines


def _files(ledger: dict[str, Any]) -> str:
    files = ledger["files"]
    formats = ", ".join(sorted(set(files.values())))
    name = shown(Path(next(iter(files)))) if len(files) == 1 else f"{len(files)} files"
    return f"{name}, {formats}"


def _sum(ledger: dict[str, Any]) -> str:
    """Lines and what became of them; a part that is zero is not worth a word."""
    parts = [f"{ledger['accepted']:,} accepted"]
    words = {"blank": "blank", "refused": "faulty and left out", "dropped": "too long and left out"}
    parts += [f"{ledger[key]:,} {word}" for key, word in words.items() if ledger[key]]
    cut = f" ({ledger['cut']:,} of them cut to length)" if ledger["cut"] else ""
    return f"{ledger['lines']:,} lines = {' + '.join(parts)}{cut}"


def whole_account(account: Account) -> str:
    """What `lora-chat data` prints."""
    ledger = account.total
    lines = []
    for source in account.sources:
        weight = f", weight {source['weight']:g}" if source["weight"] != 1 else ""
        lines.append(f"{visible(source['name'])}{weight}")
        formats = dict.fromkeys(source["files"].values())
        lines.append(f"  recognised  {', '.join(formats)}")
        lines.append(f"  ledger      {_sum(source)}")
        for title, key in (("refused", "refusals"), ("too long", "over_long")):
            lines += [f"  {title:<10}  {text}" for text in source[key]]
    held = account.validation_dialogues
    lines += [
        "",
        f"dialogues     {account.train_dialogues:,} to train on, {held:,} held out, {account.duplicates:,} duplicates",
        f"rows          {account.train_rows:,} an epoch",
        f"tokens        {ledger['tokens']:,}, supervised {ledger['supervised_tokens']:,} "
        f"({ledger['supervised_tokens'] / max(1, ledger['tokens']):.0%})",
        f"stop tokens   {ledger['stops']:,} of {ledger['replies']:,} replies end with a trained one"
        + (f" ({ledger['stops'] / ledger['replies']:.0%})" if ledger["replies"] else ""),
        "",
        f"{'':<14}{'tokens':>12}{'supervised':>12}",
        *_roles(ledger),
        "",
        *_histogram(account),
        "",
        f"packing       {account.packing.packed:.0%} of positions would hold a token in rows of "
        f"{account.packing.packed_to:,}, {account.packing.padded:.0%} in padded batches of "
        f"{account.packing.micro_batch_size}",
    ]
    return "\n".join(lines)


def _roles(ledger: dict[str, Any]) -> Iterator[str]:
    rows = [(role, *counts) for role, counts in ledger["roles"].items()]
    rest = [ledger[key] - sum(row[place] for row in rows) for place, key in ((1, "tokens"), (2, "supervised_tokens"))]
    for name, tokens, supervised in [*rows, ("template", *rest)]:
        yield f"{name:<14}{tokens:>12,}{supervised:>12,}"


def _histogram(account: Account) -> Iterator[str]:
    most = max(count for _, _, count in account.histogram)
    yield "length in tokens"
    for low, high, count in account.histogram:
        bar = "#" * (-(-count * _BAR // most)) if count else ""
        yield f"{low:>7,} - {high:>6,} {count:>8,} {bar}"


def shown_dialogues(dialogues: DialogueSet, tokenizer: "PreTrainedTokenizerBase", count: int) -> Iterator[Part]:
    """Yield the first dialogues as the model sees them; what carries loss is highlighted."""
    for path, line, rows in islice(dialogues.read_rows(), count):
        for row in rows:
            tokens = f"{len(row.input_ids)} tokens, {row.supervised_tokens} supervised"
            yield f"\n\n--- {shown(Path(path))}:{line}, {tokens}\n"
            for text, carries in _parts(row, tokenizer):
                yield Highlight(visible_lines(text)) if carries else visible_lines(text)


def _parts(row: EncodedDialogue, tokenizer: "PreTrainedTokenizerBase") -> Iterator[tuple[str, bool]]:
    """Stretches with and without loss."""
    begin = 0
    marks = [label != IGNORE_INDEX for label in row.labels]
    for end in range(1, len(marks) + 1):
        if end == len(marks) or marks[end] != marks[begin]:
            yield tokenizer.decode(row.input_ids[begin:end]), marks[begin]
            begin = end
