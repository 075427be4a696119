"""Encode the sources of a recipe: overlong dialogues, faults and the cache."""

import copy
import json
import shutil

import pytest
from test_encode import CHATML

from lora_chat.config.data import DataSection
from lora_chat.data.encoding.encode import encode_dialogue
from lora_chat.data.parsing.messages import parse_dialogue
from lora_chat.data.reading.hub_dataset import HubFiles
from lora_chat.data.sources import find_sources, open_sources
from lora_chat.data.storage import cache
from lora_chat.errors import DataError

# Like templates that show only the end of earlier replies.
SHORTENING = CHATML.replace(
    "message['content']", "(message['content'] if loop.last else message['content'].split('|')[-1])"
)


def row(*turns, system=None):
    messages = [{"role": "user" if i % 2 == 0 else "assistant", "content": text} for i, text in enumerate(turns)]
    return {"messages": ([{"role": "system", "content": system}] if system else []) + messages}


SHORT, LONG, LONGEST = row("hi", "yo"), row("hi", "yo" * 50), row("hi", "yo" * 80)
SEVERAL = row("one", "eins", "two", "zwei" * 5, "three", "drei" * 20, system="Be brief.")


@pytest.fixture
def write(tmp_path):
    def lines(*rows, name="chats.jsonl"):
        path = tmp_path / name
        path.write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in rows), encoding="utf-8")
        return path

    return lines


def open_file(path, tokenizer, *, max_positions=None, **data):
    section = DataSection(train=str(path), workers=1, **data)
    sources = find_sources(section.train_sources)
    (opened,) = open_sources(sources, section, tokenizer, [tokenizer.eos_token_id], max_positions)
    ledger = opened.store.ledger
    assert ledger.lines == ledger.accepted + ledger.blank + ledger.refused + ledger.dropped
    assert ledger.stops == ledger.replies
    assert ledger.rows == len(rows_of(opened))
    assert ledger.tokens == sum(len(ids) for ids, _ in rows_of(opened))
    assert ledger.supervised_tokens == sum(sum(mask) for _, mask in rows_of(opened))
    assert ledger.longest == max(len(ids) for ids, _ in rows_of(opened))
    return opened


def rows_of(opened):
    """Return the ids of each row, and which of them are trained."""
    rows = opened.store.open_rows()
    return list(zip(rows["input_ids"], rows["labels"], strict=True))


def said(opened):
    """Return the stored dialogues."""
    import numpy as np

    count = len(opened.store.digests)
    return [dialogue["messages"] for *_, dialogue in opened.store.read_units(np.arange(count))]


def refusal(path, tokenizer, **data):
    with pytest.raises(DataError) as caught:
        open_file(path, tokenizer, **data)
    return str(caught.value)


def length(tokenizer, some):
    stops = [tokenizer.eos_token_id]
    return max(len(encoded.input_ids) for encoded in encode_dialogue(parse_dialogue(some), tokenizer, stops))


def trained_texts(tokenizer, opened):
    return [
        tokenizer.decode([t for t, on in zip(ids, mask, strict=True) if on]).split(tokenizer.eos_token)[:-1]
        for ids, mask in rows_of(opened)
    ]


def test_too_long_dialogues_are_refused_with_file_line_and_length(tiny_tokenizer, write):
    path = write("", SHORT, "", "", LONG, "", "", "", LONGEST)
    fits, longest = length(tiny_tokenizer, SHORT), length(tiny_tokenizer, LONGEST)
    message = refusal(path, tiny_tokenizer, max_length=fits)
    assert "2 of 3 dialogues" in message
    assert f"data.max_length, {fits} tokens" in message
    assert f"{path}:5: {length(tiny_tokenizer, LONG)} tokens" in message
    assert f"{path}:9: {longest} tokens" in message
    assert "chats.jsonl:2" not in message
    assert f"--set data.max_length={longest}" in message
    assert "--set data.over_long=drop" in message
    assert "--set data.over_long=cut" in message
    ledger = open_file(path, tiny_tokenizer, max_length=longest).store.ledger
    assert (ledger.lines, ledger.accepted, ledger.blank, ledger.rows) == (9, 3, 6, 3)


def test_dropping_counts_what_was_left_out(tiny_tokenizer, write):
    fits = length(tiny_tokenizer, SHORT)
    opened = open_file(write(SHORT, LONG, SHORT, LONGEST), tiny_tokenizer, max_length=fits, over_long="drop")
    ledger = opened.store.ledger
    assert (ledger.lines, ledger.accepted, ledger.dropped, ledger.cut) == (4, 2, 2, 0)
    assert (ledger.dialogues, ledger.rows, ledger.replies) == (2, 2, 2)
    assert ledger.longest == fits
    assert ledger.tokens == 2 * fits
    assert ledger.supervised_tokens == 6
    assert said(opened) == [SHORT["messages"]] * 2


@pytest.mark.parametrize("rows", [[SEVERAL], [SEVERAL, LONGEST], [SHORT, SEVERAL, LONGEST]])
def test_the_refusal_says_how_much_cutting_would_keep(tiny_tokenizer, write, rows):
    limit = 100
    path = write(*rows)
    message = refusal(path, tiny_tokenizer, max_length=limit)
    cut = open_file(path, tiny_tokenizer, max_length=limit, over_long="cut").store.ledger
    tokens = cut.tokens - (length(tiny_tokenizer, SHORT) if SHORT in rows else 0)
    assert f"keeps 1 of these {len(rows) - (SHORT in rows)} with 2 replies ({tokens} tokens)" in message


@pytest.mark.parametrize("over_long", ["refuse", "drop", "cut"])
def test_does_not_suggest_dropping_if_all_dialogues_are_overlong(tiny_tokenizer, write, over_long):
    message = refusal(write(LONG, LONGEST), tiny_tokenizer, max_length=10, over_long=over_long)
    assert "All dialogues" in message
    assert f"--set data.max_length={length(tiny_tokenizer, LONGEST)}" in message
    assert "over_long=" not in message


def test_shows_five_overlong_dialogues_and_counts_the_rest(tiny_tokenizer, write):
    message = refusal(write(SHORT, *[LONG] * 8), tiny_tokenizer, max_length=60)
    assert message.count("chats.jsonl:") == 5
    assert "... and 3 more" in message


def test_no_row_is_longer_than_the_positions_of_the_base(tiny_tokenizer, write):
    path, fits = write(SHORT, LONG), length(tiny_tokenizer, SHORT)
    message = refusal(path, tiny_tokenizer, max_positions=fits)
    assert f"the base's positions, {fits} tokens" in message
    assert "use a base with more positions" in message
    assert open_file(path, tiny_tokenizer, max_positions=fits, over_long="drop").store.ledger.longest == fits


@pytest.mark.parametrize("room", [0, 1, 5])
@pytest.mark.parametrize("replies", [1, 2])
def test_cutting_keeps_the_beginning_as_far_as_the_last_reply_that_fits(tiny_tokenizer, write, replies, room):
    left = {"messages": SEVERAL["messages"][: 1 + 2 * replies]}
    limit = length(tiny_tokenizer, left) + room
    opened = open_file(write(SEVERAL, SHORT), tiny_tokenizer, max_length=limit, over_long="cut")
    ledger = opened.store.ledger
    assert (ledger.lines, ledger.accepted, ledger.cut, ledger.dropped) == (2, 2, 1, 0)
    assert (ledger.dialogues, ledger.rows, ledger.replies) == (2, 2, replies + 1)
    assert said(opened) == [left["messages"], SHORT["messages"]]
    ids, mask = rows_of(opened)[0]
    assert (ids, mask) == whole_row(tiny_tokenizer, left)
    assert ids[-1] == tiny_tokenizer.eos_token_id
    assert mask[-1]
    assert "Be brief." in tiny_tokenizer.decode(ids)
    kept = [*left["messages"], *SHORT["messages"]]
    bytes_said = {role: sum(len(m["content"]) for m in kept if m["role"] == role) for role in ledger.roles}
    assert {role: tokens for role, (tokens, _) in ledger.roles.items()} == bytes_said


def whole_row(tokenizer, some):
    (encoded,) = encode_dialogue(parse_dialogue(some), tokenizer, [tokenizer.eos_token_id])
    return encoded.input_ids, [label != -100 for label in encoded.labels]


def test_drops_a_dialogue_whose_first_reply_does_not_fit(tiny_tokenizer, write):
    one_reply = {"messages": SEVERAL["messages"][:3]}
    limit = length(tiny_tokenizer, one_reply) - 1
    ledger = open_file(write(SEVERAL, SHORT), tiny_tokenizer, max_length=limit, over_long="cut").store.ledger
    assert (ledger.lines, ledger.accepted, ledger.cut, ledger.dropped) == (2, 1, 0, 1)
    assert ledger.longest_refused == length(tiny_tokenizer, SEVERAL)


def test_cuts_a_dialogue_after_a_trained_reply(tiny_tokenizer, write):
    some = copy.deepcopy(SEVERAL)
    some["messages"][4]["train"] = False
    limit = length(tiny_tokenizer, {"messages": SEVERAL["messages"][:5]})
    opened = open_file(write(some), tiny_tokenizer, max_length=limit, over_long="cut")
    assert said(opened) == [some["messages"][:3]]
    assert trained_texts(tiny_tokenizer, opened) == [["eins"]]


def test_cutting_keeps_every_row_that_fits_where_each_reply_has_its_own(tiny_tokenizer, write):
    tokenizer = copy.deepcopy(tiny_tokenizer)
    tokenizer.chat_template = SHORTENING
    some = row("one", "long thoughts|eins", "two", "so|zwei", "three", "very very long thoughts|drei")
    stops = [tokenizer.eos_token_id]
    lengths = [len(encoded.input_ids) for encoded in encode_dialogue(parse_dialogue(some), tokenizer, stops)]
    assert lengths == sorted(lengths)
    for limit, kept in ((lengths[1], 2), (lengths[2] - 1, 2), (lengths[0], 1)):
        opened = open_file(write(some), tokenizer, max_length=limit, over_long="cut")
        ledger = opened.store.ledger
        assert (ledger.accepted, ledger.cut, ledger.dialogues, ledger.rows, ledger.replies) == (1, 1, 1, kept, kept)
        assert said(opened) == [some["messages"][: 2 * kept]]
        assert trained_texts(tokenizer, opened) == [["long thoughts|eins"], ["so|zwei"]][:kept]
    ledger = open_file(write(some, SHORT), tokenizer, max_length=lengths[0] - 1, over_long="cut").store.ledger
    assert (ledger.accepted, ledger.cut, ledger.dropped) == (1, 0, 1)


def test_drops_only_the_long_row_before_one_that_fits(tiny_tokenizer, write):
    tokenizer = copy.deepcopy(tiny_tokenizer)
    tokenizer.chat_template = SHORTENING
    some = row("one", "long " * 20 + "|eins", "two", "zwei")
    first, second = encode_dialogue(parse_dialogue(some), tokenizer, [tokenizer.eos_token_id])
    assert len(first.input_ids) > len(second.input_ids)
    opened = open_file(write(some), tokenizer, max_length=len(second.input_ids), over_long="cut")
    assert trained_texts(tokenizer, opened) == [["zwei"]]
    assert said(opened) == [some["messages"]]


def test_reports_all_dialogues_that_cannot_be_encoded_with_their_lines(tiny_tokenizer, write):
    tokenizer = copy.deepcopy(tiny_tokenizer)
    tokenizer.chat_template = CHATML.replace("assistant\n' }}", "assistant\n(gently)\n' }}")
    path = write("", "", *[SHORT] * 25)
    message = refusal(path, tokenizer, over_long="drop")
    assert f"{path}:3: the prompt at inference before message 2" in message
    assert message.count("chats.jsonl:") >= 20
    assert "25" in message


FAULTS = ["no JSON", {"messages": []}, row("hi", "{broken}")]


def test_faults_of_reading_and_of_encoding_count_together_towards_skip_bad(tiny_tokenizer, write):
    tokenizer = copy.deepcopy(tiny_tokenizer)
    guard = "{% if 'broken' in messages[-1].content %}{{ raise_exception('is broken') }}{% endif %}"
    tokenizer.chat_template = guard + CHATML
    path = write(SHORT, *FAULTS, "", LONG)
    message = refusal(path, tokenizer, skip_bad=2)
    assert "3 lines" in message
    assert "data.skip_bad allows 2" in message
    assert all(f"{path}:{line}: " in message for line in (2, 3, 4))
    assert "is broken" in message
    ledger = open_file(path, tokenizer, skip_bad=3).store.ledger
    assert (ledger.lines, ledger.accepted, ledger.blank, ledger.refused, ledger.dropped) == (6, 2, 1, 3, 0)
    fits = length(tokenizer, SHORT)
    ledger = open_file(path, tokenizer, skip_bad=3, max_length=fits, over_long="drop").store.ledger
    assert (ledger.lines, ledger.accepted, ledger.blank, ledger.refused, ledger.dropped) == (6, 1, 1, 3, 1)


def test_overlong_dialogues_do_not_count_for_skip_bad(tiny_tokenizer, write):
    fits = length(tiny_tokenizer, SHORT)
    assert "2 of 3 dialogues" in refusal(write(SHORT, LONG, LONGEST), tiny_tokenizer, max_length=fits, skip_bad=5)


@pytest.fixture
def builds(monkeypatch):
    """Return the number of stores that were built."""
    made, build = [], cache.build_store
    monkeypatch.setattr(cache, "build_store", lambda *arguments: (made.append(arguments[0]), build(*arguments))[1])
    return made


def files_of(opened):
    return {path.name: path.read_bytes() for path in opened.store.folder.iterdir()}


def test_cached_encoding_is_found_byte_for_byte(tiny_tokenizer, write, builds):
    path = write(SHORT, LONG, LONGEST)
    first = open_file(path, tiny_tokenizer)
    before = files_of(first)
    second = open_file(path, copy.deepcopy(tiny_tokenizer))
    assert len(builds) == 1
    assert second.store.folder == first.store.folder
    assert files_of(second) == before
    assert second.store.ledger == first.store.ledger


def test_encodes_again_after_any_other_change(tiny_tokenizer, write, builds):
    path = write(SHORT, LONG)
    first = open_file(path, tiny_tokenizer, skip_bad=1)
    other_template = copy.deepcopy(tiny_tokenizer)
    other_template.chat_template = CHATML + "{# the same #}"
    other_tokenizer = copy.deepcopy(tiny_tokenizer)
    other_tokenizer.add_tokens(["<tool_call>"])
    open_file(path, other_template)
    open_file(path, other_tokenizer)
    for setting in ({"max_length": 500}, {"over_long": "cut"}, {"turns": "last"}, {"format": "messages"}):
        open_file(path, tiny_tokenizer, **setting)
    open_file(write(SHORT, LONG, name="other.jsonl"), tiny_tokenizer)
    text = path.read_bytes()
    path.write_bytes(text.replace(b"yo", b"no", 1))
    open_file(path, tiny_tokenizer)
    assert len(builds) == len({str(folder) for folder in builds}) == 9
    path.write_bytes(text)
    again = open_file(path, tiny_tokenizer)
    assert len(builds) == 9
    assert again.store.folder == first.store.folder


def test_store_with_overlong_dialogues_is_reused_for_other_settings(tiny_tokenizer, write, builds):
    path, fits = write(SHORT, LONG), length(tiny_tokenizer, SHORT)
    assert refusal(path, tiny_tokenizer, max_length=fits) == refusal(path, tiny_tokenizer, max_length=fits)
    assert len(builds) == 1


@pytest.mark.parametrize("name", ["rows.arrow", "units.arrow", "ledger.json"])
@pytest.mark.parametrize("harm", ["missing", "empty", "cut"])
def test_rebuilds_a_store_with_a_missing_or_truncated_file(tiny_tokenizer, write, builds, name, harm):
    path = write(SHORT, LONG, row(name, harm))
    first = open_file(path, tiny_tokenizer)
    before = files_of(first)
    file = first.store.folder / name
    content = file.read_bytes()
    file.unlink()
    if harm != "missing":
        file.write_bytes(b"" if harm == "empty" else content[: len(content) // 2])
    second = open_file(path, tiny_tokenizer)
    assert len(builds) == 2
    assert files_of(second) == before


def test_stored_dialogues_are_readable_only_by_their_owner(tiny_tokenizer, write):
    opened = open_file(write(SHORT), tiny_tokenizer)
    assert opened.store.folder.stat().st_mode & 0o077 == 0
    shutil.rmtree(opened.store.folder)


def test_hub_data_set_is_a_source_like_local_files(cache_home, write, tiny_tokenizer, monkeypatch):
    asked, path = [], write(SHORT, LONG)

    def find_hub_files(*what, streaming):
        assert not streaming
        asked.append(what)
        return HubFiles("0123456789abcdef", (path,))

    monkeypatch.setattr("lora_chat.data.sources.find_hub_files", find_hub_files)
    hub = {"hub": "friend/talk", "split": "train_sft", "subset": "de", "revision": "v1", "turns": "last"}
    data = DataSection.model_validate({"train": (str(path), hub), "workers": 1})
    sources = find_sources(data.train_sources)
    assert asked == [("friend/talk", "train_sft", "de", "v1")]
    assert sources[1].name == "friend/talk de train_sft at 0123456789ab"
    opened = open_sources(sources, data, tiny_tokenizer, [tiny_tokenizer.eos_token_id], None)
    assert [source.store.ledger.accepted for source in opened] == [2, 2]
    assert opened[0].store.folder != opened[1].store.folder
