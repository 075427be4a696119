"""Votes are appended and synced, and nothing that was written is ever changed or misread."""

import errno
import json
import os
import threading

import pytest
from judgement_records import OTHER, OWN, make_comparison, make_equal, make_retraction, make_vote
from pydantic import ValidationError

from lora_chat.errors import DiskFullError, IntegrityError
from lora_chat.runs import judgement_log
from lora_chat.runs.judgement_log import MAX_LINE_BYTES, append_judgement, read_judgements
from lora_chat.runs.judgement_record import (
    MAX_NAME_CHARACTERS,
    MAX_NOTE_CHARACTERS,
    JudgedModel,
    digest_pair,
    encode_record,
    find_winner,
)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "judgements.jsonl"


def test_records_are_read_as_they_were_appended(path):
    records = (
        make_vote(0, note='</script>\u202e\n"\\ 你好 😀'),
        make_retraction(0),
        make_equal(3),
        make_vote(1, judge="Ann"),
    )
    for record in records:
        append_judgement(path, record)
    log = read_judgements(path)
    assert (log.records, log.torn, log.newer, log.damaged, log.ignored) == (records, False, 0, 0, "")
    assert path.read_bytes().isascii()
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_missing_log_is_empty(path):
    assert read_judgements(path).records == ()


def test_a_write_torn_at_any_byte_loses_at_most_its_own_vote(path):
    whole = encode_record(make_vote(0))
    line = encode_record(make_vote(1))
    later = make_vote(2)
    for cut in range(len(line)):
        path.write_bytes(whole + line[:cut])
        log = read_judgements(path)
        is_complete = cut == len(line) - 1
        assert [record.item for record in log.records] == ([0, 1] if is_complete else [0])
        assert log.torn == (0 < cut < len(line) - 1)
        if cut % 40 and cut < len(line) - 2:
            continue
        append_judgement(path, later)
        raw = path.read_bytes()
        assert raw.startswith(whole + line[:cut])  # the unfinished line keeps its bytes
        after = read_judgements(path)
        assert after.records == (*log.records, later)
        assert after.damaged == log.torn and not after.torn


@pytest.mark.parametrize("written", [0, 7])
def test_a_failed_write_leaves_the_log_as_it_was(path, monkeypatch, written):
    append_judgement(path, make_vote(0))
    before = path.read_bytes()
    write = os.write

    def fail(handle, data):
        if written and len(data) > written:
            write(handle, data[:written])
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(judgement_log.os, "write", fail)
        with pytest.raises(DiskFullError, match="not saved"):
            append_judgement(path, make_vote(1))
    assert path.read_bytes() == before
    append_judgement(path, make_vote(1))
    assert [record.item for record in read_judgements(path).records] == [0, 1]


def test_every_vote_is_synced_before_it_counts(path, monkeypatch):
    synced = []
    fsync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda handle: (synced.append(handle), fsync(handle)))
    append_judgement(path, make_vote(0))
    assert len(synced) == 2  # the file, and the folder of a new file
    append_judgement(path, make_vote(1))
    assert len(synced) == 3


def test_two_writers_do_not_mix_their_lines(path):
    def write(judge):
        for item in range(15):
            append_judgement(path, make_vote(item, judge=judge, note="x" * 500))

    threads = [threading.Thread(target=write, args=(name,)) for name in ("Ann", "Bob")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    log = read_judgements(path)
    assert len(log.records) == 30 and log.ignored == ""


def test_a_writer_waits_for_another(path):
    with judgement_log._lock(path.parent):
        thread = threading.Thread(target=append_judgement, args=(path, make_vote(0)))
        thread.start()
        thread.join(0.2)
        assert thread.is_alive() and not path.exists()
    thread.join(10)
    assert len(read_judgements(path).records) == 1


def change(**fields):
    return json.dumps({**make_vote(0).model_dump(mode="json"), **fields}).encode()


@pytest.mark.parametrize(
    ("line", "newer"),
    [
        (b"not json", 0),
        (b"[]", 0),
        (b"7", 0),
        (b"\xff\xfe", 0),
        (b"{}", 0),
        (b"[" * 5000, 0),
        (change(version=2), 1),
        (b'{"version":2}', 1),
        (change(version=True), 0),
        (change(version=0), 0),
        (change(version="1"), 0),
        (change(unknown=1), 0),
        (change(kind="other"), 0),
        (change(winner="b"), 0),
        (change(choice="both"), 0),
        (change(left="left"), 0),
        (change(item=-1), 0),
        (change(item=0.5), 0),
        (change(pair="x"), 0),
        (change(time="now"), 0),
        (change(judge="a\nb"), 0),
        (change(judge=""), 0),
        (change(note="x" * (MAX_NOTE_CHARACTERS + 1)), 0),
        (change(note=None), 0),
        (b'{"version":1,' + change()[1:], 0),
        (change(note="x")[:-1] + b" " * MAX_LINE_BYTES + b"}", 0),
    ],
)
def test_other_lines_are_counted_and_stay(path, line, newer):
    path.write_bytes(encode_record(make_vote(0)) + line + b"\n" + encode_record(make_vote(1)))
    before = path.read_bytes()
    log = read_judgements(path)
    assert [record.item for record in log.records] == [0, 1]
    assert (log.newer, log.damaged) == (newer, 1 - newer)
    assert "not counted" in log.ignored
    append_judgement(path, make_vote(2))
    assert path.read_bytes().startswith(before)


def test_the_longest_record_fits_a_line(path):
    name = JudgedModel(name="😀" * MAX_NAME_CHARACTERS, adapter=OWN)
    other = JudgedModel(name="😀" * MAX_NAME_CHARACTERS, adapter=OTHER)
    comparison = make_comparison().model_copy(update={"a": name, "b": other})
    record = make_vote(2**53, "both bad", comparison=comparison, judge="😀" * 64, note="😀" * MAX_NOTE_CHARACTERS)
    append_judgement(path, record)
    assert read_judgements(path).records == (record,)


def test_a_full_log_is_refused(path, monkeypatch):
    append_judgement(path, make_vote(0))
    monkeypatch.setattr(judgement_log, "MAX_FILE_BYTES", path.stat().st_size + 10)
    before = path.read_bytes()
    with pytest.raises(IntegrityError, match="full"):
        append_judgement(path, make_vote(1))
    assert path.read_bytes() == before
    monkeypatch.setattr(judgement_log, "MAX_FILE_BYTES", path.stat().st_size - 1)
    with pytest.raises(IntegrityError, match="more than"):
        read_judgements(path)


def test_too_many_lines_are_refused(path):
    path.write_bytes(b"\n" * (judgement_log.MAX_LINES + 1))
    with pytest.raises(IntegrityError, match="lines"):
        read_judgements(path)


@pytest.mark.parametrize("name", ["judgements.jsonl", ".judgements.lock"])
def test_links_are_not_followed(path, tmp_path, name):
    target = tmp_path / "target"
    target.write_text("keep")
    (path.parent / name).symlink_to(target)
    with pytest.raises(IntegrityError, match="link"):
        append_judgement(path, make_vote(0))
    assert target.read_text() == "keep"


@pytest.mark.parametrize("note", ["\ud800", "x" * (MAX_NOTE_CHARACTERS + 1)])
def test_a_note_that_cannot_be_stored_is_refused(note):
    with pytest.raises(ValidationError):
        make_vote(0, note=note)


def test_a_model_is_not_compared_with_itself():
    with pytest.raises(ValidationError, match="same"):
        make_comparison(OWN, OWN)


@pytest.mark.parametrize(
    ("left", "choice", "winner"),
    [
        ("a", "left", "a"),
        ("a", "right", "b"),
        ("b", "left", "b"),
        ("b", "right", "a"),
        ("a", "tie", "tie"),
        ("b", "both bad", "both bad"),
    ],
)
def test_a_choice_is_mapped_to_its_model(left, choice, winner):
    assert find_winner(left, choice) == winner


def test_the_digest_of_a_pair_depends_on_texts_and_weights_only():
    forward, backward = make_comparison(OWN, OTHER), make_comparison(OTHER, OWN)
    digest = digest_pair(forward, [1, 2], "x", "y")
    assert digest == digest_pair(backward, [1, 2], "y", "x")
    others = [
        digest_pair(forward, [1, 2], "y", "x"),
        digest_pair(forward, [12], "x", "y"),
        digest_pair(forward, [1, 2], "x", "z"),
        digest_pair(make_comparison(OWN, None), [1, 2], "x", "y"),
        digest_pair(make_comparison(OWN, OTHER, base="c" * 64), [1, 2], "x", "y"),
    ]
    assert len({digest, *others}) == 6
