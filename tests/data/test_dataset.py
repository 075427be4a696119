import json

import pytest

from lora_chat.data.dataset import (
    build_block_set,
    build_empty_set,
    build_full_set,
    build_weighted_set,
    concatenate_sets,
    split_by_share,
)
from lora_chat.data.encoding.encode import IGNORE_INDEX, encode_dialogue
from lora_chat.data.lengths import measure_rows
from lora_chat.data.parsing.messages import parse_dialogue
from lora_chat.data.parsing.rows import ReadingOptions
from lora_chat.data.storage.build import build_store
from lora_chat.data.storage.encode_chunk import ChunkEncoder, EncodingOptions
from lora_chat.data.storage.store import DialogueStore

# Shows only the part of earlier replies after the bar, so that each reply is a separate row.
FORGETS = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + (m.content if loop.last else m.content.split('|')[-1])"
    " + '<|im_end|>' + '\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def row(i, turns=1):
    said = [("user", f"question {i}"), ("assistant", f"thought {i}|answer {i}")] * turns
    return {"messages": [{"role": role, "content": content} for role, content in said]}


@pytest.fixture
def store_of(tmp_path, tiny_tokenizer):
    def make(name, rows, template=None, limit=512, over_long="drop", **reading):
        path, folder = tmp_path / f"{name}.jsonl", tmp_path / name
        path.write_text("".join(json.dumps(each) + "\n" for each in rows))
        folder.mkdir()
        before = tiny_tokenizer.chat_template
        tiny_tokenizer.chat_template = template or before
        try:
            encoder = ChunkEncoder(
                tiny_tokenizer,
                [tiny_tokenizer.eos_token_id],
                EncodingOptions(ReadingOptions(**reading), limit, over_long),
            )
            build_store(folder, [path], encoder, 1)
        finally:
            tiny_tokenizer.chat_template = before
        return DialogueStore(folder)

    return make


def ids(some):
    return [each.input_ids for each in some.rows]


def questions(some):
    return [dialogue.messages[0].content for dialogue in some.read()]


def test_rows_have_labels_and_support_all_kinds_of_index(store_of, tiny_tokenizer):
    everything = build_full_set([store_of("one", [row(i) for i in range(10)])])
    for place, dialogue in enumerate(everything.read()):
        (encoded,) = encode_dialogue(dialogue, tiny_tokenizer, [tiny_tokenizer.eos_token_id])
        found = everything.rows[place]
        assert (found.input_ids, found.labels) == (encoded.input_ids, encoded.labels)
        assert found.labels.count(IGNORE_INDEX) == len(found.labels) - found.supervised_tokens
    assert [each.input_ids for each in everything.rows[2:8:3]] == [ids(everything)[2], ids(everything)[5]]
    assert everything.rows[-1].input_ids == ids(everything)[-1]
    assert len(everything) == len(everything.rows) == 10
    for place in (10, -11):
        with pytest.raises(IndexError):
            everything.rows[place]


def test_reads_back_the_dialogues_of_the_file(store_of):
    rows = [row(i) for i in range(5)]
    rows[3]["messages"][1]["train"] = False
    rows[3]["messages"] += row(3)["messages"]
    store = store_of("one", rows)
    for number, dialogue in enumerate(build_full_set([store]).read()):
        assert dialogue.messages == parse_dialogue(rows[number]).messages
        assert (dialogue.line, dialogue.path) == (number + 1, str(store.folder) + ".jsonl")


def test_weights_decide_how_often_a_source_is_used(store_of):
    one, two = store_of("one", [row(i) for i in range(8)]), store_of("two", [row(100 + i) for i in range(8)])
    some = build_weighted_set([one, two], [2.5, 0.25], 0)
    assert len(some.rows) == 20 + 2
    assert len(some) == 8 + 2
    assert questions(some)[:8] == [f"question {i}" for i in range(8)]
    times = [ids(some).count(each) for each in ids(build_full_set([one]))]
    assert sorted(times) == [2, 2, 2, 2, 3, 3, 3, 3]
    part = {tuple(each) for each in ids(some)} & {tuple(each) for each in ids(build_full_set([two]))}
    assert len(part) == 2


def test_split_keeps_equal_dialogues_of_two_sources_together(store_of):
    one, two = store_of("one", [row(i) for i in range(30)]), store_of("two", [row(20 + i) for i in range(30)])
    sides = set()
    for seed in range(8):
        train, held, _ = split_by_share([one, two], [1, 1], 0.25, seed)
        assert not set(questions(train)) & set(questions(held))
        assert len(train) + len(held) == len(train.rows) + len(held.rows) == 60
        assert 13 <= len(held) <= 15
        sides.add(frozenset(questions(held)))
        assert len(split_by_share([one, two], [1, 1], 0.25, seed, 5)[1]) <= 5
    assert len(sides) == 8


def test_weights_change_the_training_set_but_not_the_held_out_set(store_of):
    one, two = store_of("one", [row(i) for i in range(20)]), store_of("two", [row(50 + i) for i in range(20)])
    (plain, held, _), (mixed, held_too, _) = (split_by_share([one, two], w, 0.25, 3) for w in ([1, 1], [3, 0.5]))
    assert ids(held) == ids(held_too)
    first = sum(question < "question 50" for question in map(str, questions(plain)) if len(question) < 12)
    assert first
    ours = {tuple(each) for each in ids(build_full_set([one]))}
    of_one = sum(tuple(each) in ours for each in ids(plain))
    assert sum(tuple(each) in ours for each in ids(mixed)) == 3 * of_one
    assert len(mixed.rows) == 3 * of_one + round((len(plain.rows) - of_one) / 2)


def test_rows_of_a_dialogue_stay_together_in_order(store_of, tiny_tokenizer):
    store = store_of("one", [row(i, turns=1 + i % 3) for i in range(12)], FORGETS)
    train, held, _ = split_by_share([store], [2], 0.25, 0)
    assert (len(store.digests), store.ledger.rows) == (12, 24)
    for some, times in ((train, 2), (held, 1)):
        found = list(some.read_rows())
        assert len(found) == len(some)
        for (path, line, rows), dialogue in zip(found, some.read(), strict=True):
            assert (path, line) == (dialogue.path, dialogue.line)
            assert len(rows) == 1 + (line - 1) % 3
            assert [each.input_ids for each in rows] == sorted((each.input_ids for each in rows), key=len)
            assert dialogue.messages[0].content in tiny_tokenizer.decode(rows[0].input_ids)
        assert times * sum(len(rows) for *_, rows in found) == len(some.rows)


def test_blocks_of_text_are_separate_units(store_of):
    store = store_of(
        "text", [{"text": "Once upon a time " * 10}, {"text": "The end. " * 10}], data_format="text", limit=64
    )
    everything = build_full_set([store])
    assert list(everything.read()) == ids(everything)
    assert [len(block) for block in ids(everything)] == [64] * (len(everything) - 1) + [len(ids(everything)[-1])]
    assert all(each.labels == each.input_ids for each in everything.rows)


def test_concatenated_sets_have_all_dialogues_and_blocks(store_of):
    dialogues, blocks = (
        build_full_set([store_of("one", [row(i) for i in range(3)])]),
        build_block_set([[1, 2, 3], [4, 5]]),
    )
    assert list(blocks.read()) == ids(blocks) == [[1, 2, 3], [4, 5]]
    for sets in ([dialogues, blocks], [blocks, dialogues]):
        both = concatenate_sets(sets)
        assert len(both) == len(both.rows) == 5
        assert ids(both) == ids(dialogues) + ids(blocks)
        assert list(both.read()) == [*dialogues.read(), *blocks.read()]
        assert both.rows[4].labels == [4, 5]
    assert concatenate_sets([dialogues]) is dialogues


def test_every_source_keeps_a_dialogue_despite_its_weight(store_of):
    assert len(build_weighted_set([store_of("one", [row(1)])], [0.25], 0)) == 1


def test_ignores_a_source_without_dialogues(store_of):
    empty, one = store_of("empty", [{}]), store_of("one", [row(i) for i in range(8)])
    assert len(split_by_share([empty, one], [1, 1], 0.25, 0)[0]) == 6
    assert len(build_weighted_set([one, empty], [1, 2], 0)) == 8


def test_counts_a_cut_dialogue_and_cuts_it_the_same_way_again(store_of, tiny_tokenizer):
    # The row of the second reply is too long and the row of the third is not, because prompts drop its reasoning.
    said = [("q", "t|a"), ("q", "t" * 200 + "|b"), ("q", "t|c"), ("q", "t" * 200 + "|d")]
    messages = [
        {"role": role, "content": text} for pair in said for role, text in zip(("user", "assistant"), pair, strict=True)
    ]
    store = store_of("one", [{"messages": messages}], FORGETS, limit=150, over_long="cut")
    (dialogue,) = build_full_set([store]).read()
    assert [message.content for message in dialogue.messages][-1] == "t|c"
    assert (store.ledger.cut, store.ledger.rows, store.ledger.dropped) == (1, 2, 0)
    again = store_of("two", [dialogue.as_row], FORGETS, limit=150, over_long="cut")
    assert ids(build_full_set([again])) == ids(build_full_set([store]))
    assert again.ledger.roles == store.ledger.roles


def test_an_empty_set_can_be_measured_and_joined(store_of):
    nothing = build_empty_set()
    assert (len(nothing), len(nothing.rows), list(nothing.read()), nothing.rows.lengths.tolist()) == (0, 0, [], [])
    lengths = measure_rows(nothing.rows)
    assert (lengths.longest, lengths.most_supervised, lengths.mean_tokens) == (1, 1, 0.0)
    some = build_full_set([store_of("one", [row(1)])])
    assert questions(concatenate_sets([nothing, some])) == ["question 1"]
    assert len(concatenate_sets([])) == 0
