import json
import random
import re
from bisect import insort

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lora_chat.cli import main
from lora_chat.data.statistics import length_histogram, packed_token_share, padded_token_share

LENGTHS = st.lists(st.integers(1, 64), min_size=1, max_size=60)
many = settings(deadline=None, max_examples=150, derandomize=True)


def rows_needed(lengths, limit):
    """Best-fit decreasing, one row at a time, as in a textbook."""
    free = []
    for length in sorted(lengths, reverse=True):
        fitting = [room for room in free if room >= length]
        if fitting:
            free.remove(min(fitting))
            insort(free, min(fitting) - length)
        else:
            insort(free, limit - length)
    return len(free)


@many
@given(lengths=LENGTHS)
def test_the_histogram_sums_to_the_rows_and_its_bars_touch(lengths):
    bars = length_histogram(np.array(lengths))
    assert sum(count for _, _, count in bars) == len(lengths)
    assert bars[0][0] == min(lengths)
    assert bars[-1][1] == max(lengths)
    assert len(bars) <= 12
    assert all(low <= high for low, high, _ in bars)
    assert [low for low, _, _ in bars[1:]] == [high + 1 for _, high, _ in bars[:-1]]
    for low, high, count in bars:
        assert count == sum(low <= length <= high for length in lengths)


@many
@given(lengths=LENGTHS, limit=st.integers(64, 200))
def test_packing_is_best_fit_decreasing(lengths, limit):
    assert packed_token_share(np.array(lengths), limit) == pytest.approx(
        sum(lengths) / (rows_needed(lengths, limit) * limit)
    )


def test_packing_many_rows_of_few_lengths_is_best_fit_decreasing():
    for seed in range(30):
        chance = random.Random(seed)
        lengths = [chance.choice([3, 7, 11, 20, 33, 50]) for _ in range(400)]
        limit = chance.choice([50, 64, 100, 128])
        assert packed_token_share(np.array(lengths), limit) == pytest.approx(
            sum(lengths) / (rows_needed(lengths, limit) * limit)
        )


def test_packs_a_million_rows_quickly():
    lengths = np.random.default_rng(0).integers(8, 1024, 1_000_000)
    assert 0.9 < packed_token_share(lengths, 1024) <= 1


@many
@given(lengths=LENGTHS, size=st.integers(1, 80))
def test_padded_share_is_between_its_bounds(lengths, size):
    found = padded_token_share(np.array(lengths), size)
    assert sum(lengths) / (max(lengths) * len(lengths)) <= found + 1e-12
    assert found <= 1
    if size == 1 or len(set(lengths)) == 1:
        assert found == pytest.approx(1)
    if size >= len(lengths):
        assert found == pytest.approx(sum(lengths) / (max(lengths) * len(lengths)))


# A file with a known number of every kind of fault.
def chat(question, answer, **answered):
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer} | answered]


GOOD = [{"messages": chat(f"q{i}", f"an answer {i}")} for i in range(10)]
COPIES = [GOOD[0]] * 3
SILENT = [{"messages": chat(f"s{i}", "not trained", train=False) + chat("and", f"now {i}")} for i in range(2)]
TOO_LONG = [{"messages": chat("long", "word " * 40 + str(i))} for i in range(2)]
LONG_AT_THE_END = [{"messages": chat(f"short {i}", "yes") + chat("long", "word " * 40)} for i in range(3)]
CALLS = [{"name": "look", "arguments": {}}]
TEMPLATE_REFUSES = [
    {"messages": [*chat(f"t{i}", "", tool_calls=CALLS), {"role": "tool", "content": "r"}, chat("", "a")[1]]}
    for i in range(2)
]
REFUSED = {
    "is not valid JSON": [b"{'messages': []}", json.dumps(GOOD[1]).encode() + b"}"],
    "has the key 'messages' twice": [b'{"messages": [], "messages": []}'],
    "has the role 'narrator'": [{"messages": [{"role": "narrator", "content": f"h{i}"}]} for i in range(2)],
    "message 2 (assistant) is empty": [{"messages": chat("q", " ")}],
    "has no assistant message, so": [{"messages": chat(f"n{i}", "")[:1]} for i in range(2)],
    "has no assistant message that is trained": [{"messages": [{**m, "train": False} for m in chat("q", "a")]}],
    "is not UTF-8": [b'{"messages": "caf\xe9"}'],
    "has no `messages` (its keys: 'foo')": [{"foo": i} for i in range(3)],
    "is in the format alpaca, but the file began with messages": [{"instruction": "q", "output": "a"}],
    "the chat template leaves out the tool call in message 2": TEMPLATE_REFUSES,
}
BLANKS = [b"", b" \t ", b""]
LIMIT = 100


def known_file(path):
    rows = [
        *GOOD,
        *COPIES,
        *SILENT,
        *TOO_LONG,
        *LONG_AT_THE_END,
        *(row for rows in REFUSED.values() for row in rows),
        *BLANKS,
    ]
    first, *rest = rows
    random.Random(1).shuffle(rest)
    lines = [row if isinstance(row, bytes) else json.dumps(row).encode() for row in [first, *rest]]
    path.write_bytes(b"\n".join(lines) + b"\n")
    return lines


def tokens(messages):
    """In the byte tokenizer's ChatML: <|im_start|>, role, line feed, content, <|im_end|>, line feed between."""
    return sum(len(m["role"]) + len(m["content"].encode()) + 4 for m in messages) - 1


def supervised(messages):
    return sum(len(m["content"].encode()) + 1 for m in messages if m["role"] == "assistant" and m.get("train", True))


@pytest.mark.parametrize("over_long", ["drop", "cut"])
def test_the_ledger_of_a_file_with_every_known_fault_is_exact(cache_home, tmp_path, capsys, over_long):
    lines = known_file(tmp_path / "known.jsonl")
    recipe = tmp_path / "recipe.yaml"
    refused = sum(map(len, REFUSED.values()))
    settings = f"max_length: {LIMIT}, over_long: {over_long}, validation_share: 0.25, skip_bad: {refused}"
    recipe.write_text(f"base: {{name: tiny-random}}\ndata: {{train: known.jsonl, {settings}}}\n")
    assert main(["data", str(recipe), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    (source,) = found["sources"]

    cut = len(LONG_AT_THE_END) if over_long == "cut" else 0
    kept = [row["messages"] for row in [*GOOD, *COPIES, *SILENT]]
    kept += [row["messages"][:2] for row in LONG_AT_THE_END[:cut]]
    kept_tokens = sum(map(tokens, kept))
    dropped = len(TOO_LONG) + len(LONG_AT_THE_END) - cut
    expected = {
        "lines": len(lines),
        "accepted": len(kept),
        "blank": len(BLANKS),
        "refused": refused,
        "dropped": dropped,
        "cut": cut,
        "dialogues": len(kept),
        "rows": len(kept),
        "replies": len(kept),
        "stops": len(kept),
        "tokens": kept_tokens,
        "supervised_tokens": sum(map(supervised, kept)),
        "longest": max(map(tokens, kept)),
        "longest_refused": max(tokens(row["messages"]) for row in [*TOO_LONG, *LONG_AT_THE_END]) if dropped else 0,
        "systems": [None],
        "files": {str(tmp_path / "known.jsonl"): "messages"},
    }
    if cut:
        expected["longest_refused"] = max(tokens(row["messages"]) for row in TOO_LONG)
    assert {key: source[key] for key in expected} == expected
    assert {key: found["total"][key] for key in expected} == expected
    assert source["lines"] == source["accepted"] + source["blank"] + source["refused"] + source["dropped"]
    assert source["roles"] == {
        "user": [sum(len(m["content"]) for each in kept for m in each[::2]), 0],
        "assistant": [
            sum(len(m["content"]) for each in kept for m in each[1::2]),
            sum(supervised(each) - 1 for each in kept),
        ],
    }
    assert found["duplicates"] == len(COPIES)
    assert found["train_dialogues"] + found["validation_dialogues"] == len(kept)
    assert found["train_rows"] == found["train_dialogues"] == sum(count for _, _, count in found["histogram"])
    assert found["packing"]["packed_to"] == LIMIT

    assert len(source["refusals"]) == refused
    told = [re.fullmatch(r"(.*known\.jsonl):(\d+): (.*?)(?:\n    (.*))?", text) for text in source["refusals"]]
    for reason, rows in REFUSED.items():
        there = {number for number, line in enumerate(lines, 1) if line in [as_line(row) for row in rows]}
        assert {int(one[2]) for one in told if reason in one[3]} == there
    assert all(one[4] for one in told)  # each shows the text that offends
    long = {int(re.fullmatch(r".*:(\d+): \d+ tokens", text)[1]) for text in source["over_long"]}
    assert {lines[number - 1] for number in long} == {as_line(r) for r in [*TOO_LONG, *LONG_AT_THE_END[cut:]]}

    assert main(["data", str(recipe)]) == 0
    text = capsys.readouterr().out
    sums = (
        f"{len(lines)} lines = {len(kept)} accepted + {len(BLANKS)} blank + {refused} faulty and left out "
        f"+ {dropped} too long and left out" + (f" ({cut} of them cut to length)" if cut else "")
    )
    assert re.search(rf"ledger +{re.escape(sums)}$", text, re.MULTILINE)
    assert f", {len(COPIES)} duplicates" in text
    assert f"tokens        {kept_tokens:,}, supervised {expected['supervised_tokens']:,} " in text
    assert f"stop tokens   {len(kept)} of {len(kept)} replies end with a trained one (100%)" in text
    for role, counts in source["roles"].items():
        assert re.search(rf"^{role} +{counts[0]:,} +{counts[1]:,}$", text, re.MULTILINE)
    assert all(refusal.splitlines()[0] in text for refusal in source["refusals"])

    assert main(["data", str(recipe), "--set", f"data.skip_bad={refused - 1}"]) == 3
    told = capsys.readouterr()
    assert told.out == ""
    assert f"{refused} lines of" in told.err
    assert f"allows {refused - 1}" in told.err


def as_line(row):
    return row if isinstance(row, bytes) else json.dumps(row).encode()
