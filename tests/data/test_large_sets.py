"""Choices and digests of large sets are those of the plain algorithms, which sort or read everything."""

import hashlib
import json

import numpy as np
import pytest
import torch
from accelerate.data_loader import SeedableRandomSampler

from lora_chat.config.data import DataSection
from lora_chat.data import split
from lora_chat.data.dataset import leave_out_units, split_by_share
from lora_chat.data.row_lengths import find_largest
from lora_chat.data.sources import find_sources, open_sources
from lora_chat.data.split import choose_held_out
from lora_chat.data.storage import results
from lora_chat.pipeline import row_digest
from lora_chat.training.row_order import ListlessSampler


def choose_by_sorting(digests, wanted, seed):
    """Choose groups of equal units from a sorted list of all."""
    order = sorted(set(digests.tolist()), key=lambda digest: int(split._random_keys(np.array([digest]), seed)[0]))
    counts = {digest: int((digests == digest).sum()) for digest in order}
    chosen, taken = set(), 0
    for digest in order[:-1]:
        if taken + counts[digest] <= wanted:
            chosen.add(digest)
            taken += counts[digest]
    if not chosen:
        chosen = {min(order, key=lambda digest: counts[digest])}
    return [digest in chosen for digest in digests.tolist()]


@pytest.mark.parametrize("candidates", [0, 3, 1000])
@pytest.mark.parametrize("values", [2, 5, 2**60])
def test_held_out_units_equal_the_choice_from_a_sorted_list(monkeypatch, candidates, values):
    monkeypatch.setattr(split, "_MIN_CANDIDATES", candidates)
    generator = np.random.default_rng(values + candidates)
    for size in range(3, 60, 4):
        digests = generator.integers(0, values, size)
        digests[:2] = 0, 1
        share, limit = float(generator.uniform(0.01, 0.9)), int(generator.choice([1, 3, 100]))
        wanted = max(1, min(round(size * share), limit))
        assert choose_held_out(digests, share, 7, limit).tolist() == choose_by_sorting(digests, wanted, 7)


def test_largest_values_come_first_and_equal_ones_keep_their_order():
    values = np.random.default_rng(0).integers(0, 9, 200).astype(np.int32)
    for count in (1, 7, 199, 200, 500):
        assert find_largest(values, count).tolist() == sorted(range(200), key=lambda i: -values[i])[:count]


@pytest.mark.parametrize("rows", [1, 5, 70_000])
def test_row_order_is_accelerates_in_every_epoch(rows):
    samplers = [kind(range(rows), data_seed=3) for kind in (SeedableRandomSampler, ListlessSampler)]
    for _ in range(2):
        expected, found = (list(sampler) for sampler in samplers)
        assert found == expected
        assert sorted(found) == list(range(rows))
    assert torch.equal(*(sampler.epoch * torch.ones(1) for sampler in samplers))


def digest_one_by_one(rows):
    digest = hashlib.sha256()
    for begin in range(0, len(rows), row_digest._BATCH_ROWS):
        batch = [rows[index] for index in range(begin, min(begin + row_digest._BATCH_ROWS, len(rows)))]
        masks = [[label != -100 for label in row.labels] for row in batch]
        for column in ([row.input_ids for row in batch], masks):
            digest.update(np.array([len(values) for values in column], np.int64).tobytes())
            digest.update(np.array([value for values in column for value in values], np.int32).tobytes())
    return digest.hexdigest()


@pytest.fixture
def stores(tmp_path, cache_home, tiny_tokenizer):
    opened = []
    for name, count in (("a", 60), ("b", 30)):
        path = tmp_path / f"{name}.jsonl"
        rows = (
            {"messages": [{"role": "user", "content": f"{name} {n}"}, {"role": "assistant", "content": "x" * (n % 7)}]}
            for n in range(1, count + 1)
            if n % 7
        )
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        data = DataSection(train=str(path), workers=1)
        opened += open_sources(
            find_sources(data.train_sources), data, tiny_tokenizer, [tiny_tokenizer.eos_token_id], None
        )
    return [source.store for source in opened]


@pytest.mark.parametrize("weights", [(1.0, 1.0), (2.0, 0.5)])
@pytest.mark.parametrize("span", [0, 16])
def test_row_digest_of_batches_equals_the_digest_row_by_row(monkeypatch, stores, weights, span):
    monkeypatch.setattr(row_digest, "_BATCH_ROWS", 8)
    monkeypatch.setattr(row_digest, "_MAX_SPAN", span)
    train, _, _ = split_by_share(stores, weights, 0.2, 0)
    for dialogues in (train, leave_out_units(train, [3, 4, 40])):
        assert row_digest.digest_rows(dialogues) == digest_one_by_one(dialogues.rows)


def test_kept_row_digest_is_used_until_it_or_the_rows_change(monkeypatch, stores):
    train, _, _ = split_by_share(stores, (1.0, 1.0), 0.2, 0)
    right = row_digest.digest_rows(train)
    monkeypatch.setattr(row_digest, "_MIN_KEPT_ROWS", 1)
    computed = []
    compute = row_digest._compute_digest
    monkeypatch.setattr(row_digest, "_compute_digest", lambda dialogues: computed.append(1) or compute(dialogues))
    assert [row_digest.digest_rows(train) for _ in range(3)] == [right] * 3
    assert len(computed) == 1
    assert row_digest.digest_rows(leave_out_units(train, [0])) != right
    for kept in stores[0].folder.glob("result-rows-*"):
        kept.write_bytes(kept.read_bytes()[:-1] + b"0")
    assert row_digest.digest_rows(train) == right
    assert len(computed) == 3
    rows = stores[0].folder / "rows.arrow"
    rows.write_bytes(rows.read_bytes())
    assert row_digest.digest_rows(train) == right
    assert len(computed) == 4


def test_few_results_are_kept_beside_a_store(stores):
    selection = [(stores[0], np.arange(3))]
    for number in range(results._MAX_RESULTS + 5):
        assert results.find_or_compute(selection, "test", str(number), 10, lambda: b"value") == b"value"
    assert len(list(stores[0].folder.glob("result-*"))) == results._MAX_RESULTS
    assert stores[0].is_complete
