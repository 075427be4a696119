"""`tools/compare_tokenizers.py` finds a wrong prompt, mask, label and stop token, and accepts what training encodes."""

import importlib.util
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from lora_chat.data.encoding.encode import IGNORE_INDEX, encode_dialogue
from lora_chat.data.parsing.messages import parse_dialogue

SOURCE = Path(__file__).parents[3] / "tools" / "compare_tokenizers.py"
spec = importlib.util.spec_from_file_location("compare_tokenizers", SOURCE)
compare_tokenizers = importlib.util.module_from_spec(spec)
sys.modules["compare_tokenizers"] = compare_tokenizers
spec.loader.exec_module(compare_tokenizers)

MESSAGES = [
    {"role": "user", "content": "Where is the kiln?"},
    {"role": "assistant", "content": "Behind the shed."},
    {"role": "user", "content": "And the clay?"},
    {"role": "assistant", "content": "Inside."},
]


def find(row, tokenizer):
    dialogue = parse_dialogue({"messages": MESSAGES})
    return list(compare_tokenizers.find_differences(dialogue, row, tokenizer, {tokenizer.eos_token_id}))


@pytest.fixture
def row(tiny_tokenizer):
    (row,) = encode_dialogue(parse_dialogue({"messages": MESSAGES}), tiny_tokenizer, [tiny_tokenizer.eos_token_id])
    return row


def test_accepts_the_encoded_row(row, tiny_tokenizer):
    assert find(row, tiny_tokenizer) == []


def test_finds_each_kind_of_difference(row, tiny_tokenizer):
    ids, labels = list(row.input_ids), list(row.labels)
    first = next(i for i, label in enumerate(labels) if label != IGNORE_INDEX)
    end = next(i for i in range(first, len(labels)) if labels[i] == IGNORE_INDEX)
    early, late, short, other = list(labels), list(labels), list(labels), list(labels)
    early[first - 1] = ids[first - 1]
    late[first] = IGNORE_INDEX
    short[end - 1] = IGNORE_INDEX
    other[first] += 1
    assert "the prompt before message 2 differs" in find(replace(row, labels=early), tiny_tokenizer)
    assert any("message 2 is trained as" in text for text in find(replace(row, labels=late), tiny_tokenizer))
    assert "message 2 ends without a stop token" in find(replace(row, labels=short), tiny_tokenizer)
    assert "a label of message 2 is not its token" in find(replace(row, labels=other), tiny_tokenizer)
    changed = [*ids[: end + 1], ids[end + 1] + 1, *ids[end + 2 :]]
    assert "the row is not the chat that the template writes" in find(replace(row, input_ids=changed), tiny_tokenizer)
    no_second = [*labels[:end], *[IGNORE_INDEX] * (len(labels) - end)]
    assert find(replace(row, labels=no_second), tiny_tokenizer) == ["1 spans with loss for 2 replies"]
