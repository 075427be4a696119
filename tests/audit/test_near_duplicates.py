import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lora_chat.audit.checks.heavy_hitters import FrequentItems
from lora_chat.audit.duplicates.minhash import compute_signatures
from lora_chat.audit.duplicates.near_duplicates import DuplicateFinder
from lora_chat.audit.duplicates.shingles import hash_shingles
from lora_chat.data.dialogue import Dialogue, Message


def dialogue(question, answer, system=None):
    start = (Message("system", system),) if system else ()
    return Dialogue((*start, Message("user", question), Message("assistant", answer)))


def find(*entries):
    finder = DuplicateFinder()
    for entry, split in entries:
        finder.add(entry, split)
    return [(t.kind, t.dialogue, t.other) for t in finder.find()]


def words(seed, count):
    chosen = random.Random(seed)
    return [f"word{chosen.randrange(5000)}" for _ in range(count)]


def changed(text, places, seed=0):
    result = list(text)
    for place in random.Random(seed).sample(range(len(result)), places):
        result[place] = "other"
    return result


LONG = words(1, 60)
A = dialogue(" ".join(LONG), "yes of course, " + " ".join(words(2, 60)))


def test_equal_dialogues_are_exact_duplicates_or_leaks():
    B = dialogue("something else", "entirely")
    assert find((A, "train"), (B, "train"), (A, "train"), (A, "validation"), (A, "validation")) == [
        ("exact_duplicate", 2, 0),
        ("leak", 3, 0),
        ("leak", 4, 0),
    ]
    assert find((A, "validation"), (A, "train")) == [("leak", 0, 1)]
    assert find((A, "validation"), (A, "validation")) == [("exact_duplicate", 1, 0)]


def test_few_changed_words_make_near_duplicates_and_near_leaks():
    near = dialogue(" ".join(changed(LONG, 2)), A.messages[1].content)
    assert find((A, "train"), (near, "train")) == [("near_duplicate", 1, 0)]
    assert find((near, "validation"), (A, "train")) == [("near_leak", 0, 1)]


def test_test_dialogues_leak_from_training_and_from_validation():
    near = dialogue(" ".join(changed(LONG, 2)), A.messages[1].content)
    B = dialogue("something else", "entirely")
    assert find((A, "test"), (A, "validation"), (B, "train"), (B, "test")) == [("leak", 0, 1), ("leak", 3, 2)]
    assert find((A, "test"), (A, "validation"), (A, "train")) == [("leak", 0, 2), ("leak", 1, 2)]
    assert find((near, "test"), (B, "train"), (A, "validation")) == [("near_leak", 0, 2)]
    assert find((near, "test"), (A, "test")) == [("near_duplicate", 1, 0)]


def test_a_test_dialogue_is_compared_with_the_last_of_many_validation_dialogues():
    start = " ".join(words(7, 50))
    many = [dialogue(start, f"{start} {' '.join(words(100 + i, 14))}") for i in range(30)]
    near = dialogue(start, many[29].messages[1].content + " indeed")
    kinds = find(*((each, "validation") for each in many), *((many[0], "test") for _ in range(6)), (near, "test"))
    assert ("near_leak", 36, 29) in kinds


def test_ignores_case_punctuation_and_system_message():
    loud = dialogue(A.messages[0].content.upper() + "!!", A.messages[1].content, "You are a pirate.")
    assert find((A, "train"), (loud, "train")) == [("near_duplicate", 1, 0)]


def test_different_questions_with_the_same_answer_are_not_duplicates():
    answer = " ".join(words(3, 80))
    entries = [(dialogue(f"How is it with {w}, {w} and {w}?", answer, "You help."), "train") for w in words(4, 40)]
    assert find(*entries) == []


def test_compares_chinese_by_characters():
    text = "".join(random.Random(7).choices([chr(c) for c in range(0x4E00, 0x5E00)], k=200))
    near = text[:100] + "好" + text[101:]
    answer = text[::-1]
    assert find((dialogue(text, answer), "train"), (dialogue(near, answer), "train")) == [("near_duplicate", 1, 0)]


def test_finds_one_leak_among_many_dialogues():
    entries = [(dialogue(" ".join(words(n, 40)), " ".join(words(-n, 40))), "train") for n in range(10, 400)]
    entries += [(dialogue(" ".join(changed(LONG, 1, n)), A.messages[1].content), "train") for n in range(50)]
    entries.append((A, "validation"))
    found = find(*entries)
    assert ("near_leak", 440) in [(kind, number) for kind, number, _ in found]
    assert sum(kind in ("near_duplicate", "exact_duplicate") for kind, _, _ in found) == 49


@pytest.mark.parametrize("shared", [20, 50, 80, 95])
def test_signatures_estimate_the_jaccard_similarity(shared):
    estimates = []
    for seed in range(20):
        base, end = words(seed, shared), words(-seed - 1, 100 - shared)
        a, b = compute_signatures([" ".join(base + end), " ".join(base + words(seed + 1000, 100 - shared))])
        estimates.append(float((a == b).mean()))
    true = (shared - 2) / (2 * 98 - (shared - 2))
    assert abs(np.mean(estimates) - true) < 0.04


@settings(deadline=None, max_examples=80, derandomize=True)
@given(
    st.lists(
        st.text(max_size=30) | st.sampled_from(["", "\0", "a b c d", "你好世界", "\ud800"]), min_size=1, max_size=6
    )
)
def test_shingles_of_a_text_do_not_depend_on_other_texts(texts):
    hashes, starts = hash_shingles(texts)
    assert len(starts) == len(texts)
    ends = [*starts[1:].tolist(), len(hashes)]
    for text, start, end in zip(texts, starts, ends, strict=True):
        alone, _ = hash_shingles([text])
        assert alone.tolist() == hashes[start:end].tolist() != []


def test_finds_nothing_without_a_second_dialogue():
    assert find() == []
    assert find((A, "train")) == []


def test_keeps_most_frequent_item_of_a_stream():
    frequent = FrequentItems(20)
    for n in range(3000):
        frequent.add(-1 if n % 5 == 0 else n, n)
    (first, count), *_ = frequent.most_common()
    assert first == 0
    assert 600 - 3000 / 20 <= count <= 600
