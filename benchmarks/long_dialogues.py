"""Measure the seconds that one dialogue takes from messages to token ids and labels, by its number of turns.

    python benchmarks/long_dialogues.py [--turns 50 200 800] [--templates llama3_1 chatml plain qwen3]

The tokenizer is the embedded base's; for Llama it splits texts as Llama 3 does, so that the prompt's two line feeds are
one token before any reply. `chatml` and `plain` are bundled; the others are TRL's files of these names, which
are rendered in the worker process. Each time is the shortest of three.
"""

import argparse
import copy
import time
from pathlib import Path
from typing import Any

from lora_chat.data.dialogue import Dialogue, Message
from lora_chat.data.encoding.bundled_templates import CHAT_TEMPLATES_BY_NAME
from lora_chat.data.encoding.encode import DialogueEncoder

_STOPS = {"llama3_1": "<|eot_id|>", "llama3_2": "<|eot_id|>", "gemma3": "<end_of_turn>", "gemma": "<end_of_turn>"}
_ADDED = ("<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>", "<start_of_turn>", "<end_of_turn>", "<bos>")
_LLAMA_SPLIT = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"  # noqa: E501
"""Regular expression of Llama 3's tokenizer."""
_ROUNDS = 3


def load_tokenizer(name: str) -> tuple[Any, int]:
    """Return the embedded base's tokenizer with a template, and the stop id."""
    import trl
    from tokenizers import Regex, pre_tokenizers
    from transformers import AutoTokenizer

    from lora_chat.models.bundled import find_bundled_base

    tokenizer = copy.deepcopy(AutoTokenizer.from_pretrained(find_bundled_base("smollm2-135m-instruct")))
    if name in CHAT_TEMPLATES_BY_NAME:
        tokenizer.chat_template = CHAT_TEMPLATES_BY_NAME[name].text
    else:
        path = Path(trl.__file__).parent / "chat_templates" / f"{name}.jinja"
        tokenizer.chat_template = path.read_text(encoding="utf-8")
    stop = _STOPS.get(name, str(tokenizer.eos_token))
    if name in _STOPS:
        tokenizer.add_special_tokens({"additional_special_tokens": list(_ADDED)})
        tokenizer.bos_token = "<bos>"  # noqa: S105
    if name.startswith("llama"):
        parts = [
            pre_tokenizers.Split(Regex(_LLAMA_SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(parts)
    return tokenizer, int(tokenizer.convert_tokens_to_ids(stop))


def make_dialogue(turns: int) -> Dialogue:
    """Return a dialogue of this many messages, half of them replies, each of about 70 characters."""
    text = "message {} says a few words about the weather, the sea and the ships"
    roles = ("user", "assistant")
    return Dialogue(tuple(Message(roles[i % 2], text.format(i)) for i in range(turns)))  # type: ignore[arg-type]


def measure(encoder: DialogueEncoder, dialogue: Dialogue) -> tuple[float, int, int]:
    """Return the shortest seconds of several rounds, the rows and their tokens."""
    times = []
    for _ in range(_ROUNDS):
        started = time.perf_counter()
        (rows,) = encoder.encode([dialogue])
        times.append(time.perf_counter() - started)
    if isinstance(rows, Exception):
        raise rows
    return min(times), len(rows), sum(len(row.input_ids) for row in rows)


def main() -> None:
    """Print a line for each template and length."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, nargs="+", default=[50, 200, 800])
    parser.add_argument("--templates", nargs="+", default=["llama3_1", "chatml", "plain", "qwen3"])
    options = parser.parse_args()
    for name in options.templates:
        tokenizer, stop = load_tokenizer(name)
        encoder = DialogueEncoder(tokenizer, [stop])
        encoder.encode([make_dialogue(2)])
        for turns in options.turns:
            seconds, rows, tokens = measure(encoder, make_dialogue(turns))
            print(f"{name:<10} {turns:>5} turns {seconds:>8.3f} s {rows:>5} rows {tokens:>10,} tokens", flush=True)


if __name__ == "__main__":
    main()
