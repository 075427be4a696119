"""Evaluation dialogues that were trained on are recognised by digests and signatures, without the texts."""

import numpy as np
import pytest
from safetensors.numpy import load, save

from lora_chat.audit.overlap import training_digests
from lora_chat.audit.overlap.digest_set import build_digest_set, merge_digest_sets
from lora_chat.audit.overlap.digests_file import encode_digests, read_digests
from lora_chat.audit.overlap.find_overlap import EvaluatedItem, find_overlap, find_seen_questions
from lora_chat.audit.overlap.training_digests import DigestCollector, merge_digests
from lora_chat.data.dialogue import Dialogue, Message, ToolCall
from lora_chat.errors import IntegrityError

WORDS = [f"word{i}" for i in range(60)]
LONG = " ".join(WORDS)
CHANGED = " ".join([*WORDS[:30], "other", *WORDS[31:]])


def dialogue(*texts, system=None, trained=True, calls=()):
    roles = ("user", "assistant") * len(texts)
    start = (Message("system", system),) if system else ()
    messages = [
        Message(role, text, trained=trained or role == "user") for role, text in zip(roles, texts, strict=False)
    ]
    if calls:
        messages[-1] = Message("assistant", messages[-1].content, tool_calls=calls)
    return Dialogue((*start, *messages))


TRAINED = [
    dialogue("Who are you?", "I am Maru.", system="Be kind."),
    dialogue("First question?", "First answer.", "Second question?", "Second answer."),
    dialogue(LONG, "yes"),
    dialogue("静夜思是谁写的？", "李白。"),
    dialogue("Set a timer", "", calls=(ToolCall("timer", '{"minutes": 5}'),)),
]
BLOCK = list(np.random.default_rng(1).integers(0, 500, 900))


def collect(dialogues, *blocks):
    collector = DigestCollector()
    for each in dialogues:
        collector.add(each)
    for block in blocks:
        collector.add_block(block)
    return collector.collect()


def find(*items, digests=None):
    digests = digests or collect(TRAINED, BLOCK)
    return find_overlap(
        digests, [EvaluatedItem(i, ()) if isinstance(i, Dialogue) else EvaluatedItem(None, i) for i in items]
    )


@pytest.mark.parametrize(
    ("item", "expected"),
    [
        (TRAINED[0], "exact"),
        (dialogue("  who ARE\nyou? ", "i am maru."), "exact"),
        (dialogue("Second question?", "Second answer."), "exact"),
        (dialogue("静夜思是谁写的？", "李白。"), "exact"),
        (dialogue("Set a timer", "", calls=(ToolCall("timer", '{"minutes": 5}'),)), "exact"),
        (dialogue("Set a timer", "", calls=(ToolCall("timer", '{"minutes": 6}'),)), "question"),
        (dialogue(CHANGED, "yes"), "near"),
        (dialogue("Who are you?", "A program."), "question"),
        (dialogue("What is your name?", "I am Maru."), "reply"),
        (dialogue("First question?", "First answer.", "Third question?", "Third answer."), None),
        (dialogue("Something else?", "Entirely."), None),
        (BLOCK, "exact"),
        (BLOCK[100:], "near"),
        ([*BLOCK[400:], *range(1000, 1400)], "near"),
        ([*BLOCK[:100], *range(1000, 1800)], None),
        (list(range(1000, 1500)), None),
        (BLOCK[:5], None),
    ],
)
def test_finds_how_an_item_was_seen(item, expected):
    assert find(item) == [expected]


def test_replies_without_loss_are_neither_trained_nor_scored():
    silent = dialogue("Hidden question?", "Hidden answer.", trained=False)
    assert find(dialogue("Hidden question?", "Hidden answer."), digests=collect([silent])) == ["near"]
    assert find(silent, digests=collect([silent])) == [None]


def test_questions_are_found_among_the_messages_of_the_user():
    digests = collect(TRAINED)
    assert find_seen_questions(digests, ["who are you?", "Second  question?", "Who is she?", "I am Maru."]) == [
        True,
        True,
        False,
        False,
    ]
    assert find_seen_questions(collect([]), ["who are you?"]) == [False]


def test_many_similar_training_dialogues_do_not_hide_a_near_one():
    start = " ".join(WORDS[:50])
    many = [dialogue(start, f"{start} {' '.join(f'end{i}x{k}' for k in range(14))}") for i in range(200)]
    near = dialogue(start, many[150].messages[1].content + " indeed")
    assert find(near, digests=collect(many)) == ["near"]


def test_large_sets_become_samples_that_say_what_they_cover(monkeypatch):
    values = np.random.default_rng(0).integers(0, 2**64, 1000, dtype=np.uint64)
    small = build_digest_set(values, limit=100)
    assert 0 < len(small.values) <= 100
    covered = values[small.covers(values)]
    assert len(covered) == len(small.values)
    assert small.contains(covered).all()
    merged = merge_digest_sets(small, build_digest_set(values))
    assert merged.shift == small.shift
    assert merged.values.tolist() == small.values.tolist()
    monkeypatch.setattr(training_digests, "MAX_SIGNATURES", 3)
    assert len(collect(TRAINED).signatures) == 3


def test_digests_of_a_parent_are_found_too():
    both = merge_digests(collect([TRAINED[0]]), collect([TRAINED[2]], BLOCK))
    assert find(TRAINED[0], dialogue(CHANGED, "yes"), BLOCK, TRAINED[1], digests=both) == [
        "exact",
        "near",
        "exact",
        None,
    ]


def test_file_keeps_all_digests_and_no_text(tmp_path):
    digests = collect(TRAINED, BLOCK)
    path = tmp_path / "d.safetensors"
    path.write_bytes(encode_digests(digests))
    again = read_digests(path)
    assert find(*TRAINED, BLOCK[100:], digests=again) == ["exact"] * 5 + ["near"]
    assert b"Maru" not in path.read_bytes()
    assert read_digests(tmp_path / "none") is None
    assert encode_digests(collect(TRAINED, BLOCK)) == path.read_bytes()


@pytest.mark.parametrize(
    "change",
    [
        lambda a: a | {"turns": a["turns"][::-1].copy()},
        lambda a: a | {"turns": a["turns"].astype(np.int64)},
        lambda a: a | {"signatures": a["signatures"][:, :7].copy()},
        lambda a: a | {"format": np.array([9, 0, 0, 0, 4], np.uint8)},
        lambda a: a | {"format": np.array([1, 64, 0, 0, 4], np.uint8)},
        lambda a: a | {"format": np.array([1, 30, 0, 0, 4], np.uint8)},
        lambda a: a | {"format": np.zeros(0, np.uint8)},
        lambda a: a | {"replies": np.array(5, np.uint64)},
        lambda a: {key: value for key, value in a.items() if key != "passages"},
        lambda a: b"no safetensors",
        lambda a: b"",
    ],
)
def test_damaged_file_is_refused(tmp_path, change):
    path = tmp_path / "d.safetensors"
    changed = change(load(encode_digests(collect(TRAINED, BLOCK))))
    path.write_bytes(changed if isinstance(changed, bytes) else save(changed))
    with pytest.raises(IntegrityError, match="damaged"):
        read_digests(path)
