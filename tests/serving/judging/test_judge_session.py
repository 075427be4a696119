"""A judge sees each pair once, in a random order, and every vote reaches the log."""

import errno

import pytest

pytest.importorskip("starlette")

from judge_models import ERRORS, ScriptedGenerator, ScriptedModels, make_plan
from judgement_records import OTHER, OWN, make_comparison

from lora_chat.errors import DiskFullError
from lora_chat.evaluation.judgements import summarize_judgements
from lora_chat.runs import judgement_log
from lora_chat.runs.judgement_log import append_judgement, read_judgements
from lora_chat.runs.judgement_record import Retraction, Vote
from lora_chat.serving.judging.judge_session import JudgeSession, ShownPair, VoteRefusedError


@pytest.fixture
def generator(tiny_tokenizer):
    return ScriptedGenerator(tiny_tokenizer)


@pytest.fixture
def open_session(tmp_path, tiny_tokenizer, generator):
    def open_one(prompts=5, **options):
        return JudgeSession(make_plan(tmp_path, tiny_tokenizer, prompts), ScriptedModels(generator), **options)

    return open_one


def records(session):
    return read_judgements(session.plan.run.judgements).records


def judge_all(session, choose=lambda pair: "left"):
    shown = []
    while isinstance(pair := session.next_pair(), ShownPair):
        shown.append(pair)
        session.vote(pair.id, choose(pair))
    assert pair == "done"
    return shown


def test_votes_are_stored_by_model_whatever_the_order_was(open_session):
    session = open_session(40, secret=b"x")
    shown = judge_all(session, lambda pair: "left" if "trained" in pair.as_dict()["left"]["text"] else "right")
    assert {pair.left for pair in shown} == {"a", "b"}  # both orders occur
    (result,) = summarize_judgements(records(session))
    assert (result.counts.wins, result.counts.losses, result.votes) == (40, 0, 40)
    assert 5 <= result.position.left <= 35


def test_the_order_of_a_pair_is_random_for_each_server_and_stays_in_a_session(open_session):
    orders = []
    for _ in range(30):
        session = open_session(1)
        pair = session.next_pair()
        assert session.next_pair() is pair
        orders.append(pair.left)
    assert 4 <= orders.count("a") <= 26


def test_a_pair_is_ready_only_when_both_replies_are_complete(open_session, generator):
    generator.is_slow = True
    session = open_session()
    assert session.next_pair() == "waiting"
    generator.release(1)
    assert session.next_pair() == "waiting"
    generator.release(1)
    assert isinstance(session.next_pair(), ShownPair)


def test_replies_are_generated_a_few_pairs_ahead_and_once(open_session, generator):
    session = open_session(10)
    pair = session.next_pair()
    assert [request.number for request in generator.requests] == [0, 0, 1, 1, 2, 2]
    assert [request.adapter for request in generator.requests[:2]] == ["adapter-1", None]
    session.vote(pair.id, "tie")
    session.next_pair()
    session.next_pair()
    assert [request.number for request in generator.requests] == [0, 0, 1, 1, 2, 2, 3, 3]


def test_a_full_queue_is_asked_again_later(open_session, generator):
    session = open_session()
    generator.error = ERRORS["queue"]
    assert session.next_pair() == "waiting"
    generator.error = None
    assert isinstance(session.next_pair(), ShownPair)


def test_prompts_that_cannot_be_answered_are_left_out_and_counted(open_session, generator, messages):
    generator.finishes = {1: "failed", 2: "removed"}
    session = open_session()
    assert len(judge_all(session)) == 3
    assert session.describe_progress()["failed"] == 2
    assert "left out" in messages[0]
    generator.error = ERRORS["long"]
    other = open_session(judge="Ann")
    assert judge_all(other) == []
    assert other.describe_progress()["too_long"] == 5


def test_equal_replies_are_not_shown_and_recorded_once(open_session, generator):
    generator.reply = lambda adapter, number: "the same" if number < 3 else f"{adapter} {number}"
    for _ in range(2):
        session = open_session()
        judge_all(session)
        assert session.describe_progress() | {"can_undo": 0} == {
            "total": 5, "judged": 2, "equal": 3, "too_long": 0, "failed": 0, "can_undo": 0, "finished": False,
        }  # fmt: skip
    (result,) = summarize_judgements(records(session))
    assert (result.equal_replies, result.votes) == (3, 2)
    assert len(records(session)) == 5


def test_a_second_start_continues_with_the_pairs_without_a_vote(open_session):
    session = open_session()
    for _ in range(2):
        session.vote(session.next_pair().id, "left")
    again = open_session()
    assert again.describe_progress()["judged"] == 2
    assert again.next_pair().number == 3
    assert len(judge_all(again)) == 3
    assert len(judge_all(open_session(judge="Ann"))) == 5  # another judge has all pairs


def test_votes_on_other_weights_do_not_hide_pairs(open_session, tmp_path):
    session = open_session(1)
    vote = {"pair": "0" * 64, "item": 0, "time": "2026-11-29T12:00:00Z", "left": "a", "choice": "left", "winner": "a"}
    append_judgement(session.plan.run.judgements, Vote(comparison=make_comparison(OTHER), **vote))
    assert open_session(1).describe_progress()["judged"] == 0
    append_judgement(session.plan.run.judgements, Vote(comparison=make_comparison(None, OWN), **vote))
    assert open_session(1).describe_progress()["judged"] == 1  # the reverse is the same comparison


def test_the_same_vote_twice_is_one_and_another_replaces_it(open_session):
    session = open_session(secret=b"x")
    pair = session.next_pair()
    session.vote(pair.id, "left")
    session.vote(pair.id, "left")
    assert len(records(session)) == 1
    session.vote(pair.id, "right", "changed my mind")
    assert len(records(session)) == 2
    (result,) = summarize_judgements(records(session))
    assert result.votes == 1
    assert result.remarks[0].text == "changed my mind"
    assert session.describe_progress()["judged"] == 1


def test_undo_appends_a_retraction_and_shows_the_pair_again(open_session):
    session = open_session()
    first = session.next_pair()
    session.vote(first.id, "left")
    second = session.next_pair()
    session.vote(second.id, "both bad")
    session.undo()
    assert session.next_pair() is second
    session.undo()
    assert session.next_pair() is first
    with pytest.raises(VoteRefusedError, match="no vote to undo"):
        session.undo()
    assert [type(record) for record in records(session)] == [Vote, Vote, Retraction, Retraction]
    assert summarize_judgements(records(session))[0].votes == 0


def test_a_failed_write_is_no_vote(open_session, monkeypatch):
    session = open_session()
    pair = session.next_pair()
    with monkeypatch.context() as patch:
        patch.setattr(judgement_log.os, "write", lambda *_: (_ for _ in ()).throw(OSError(errno.ENOSPC, "full")))
        with pytest.raises(DiskFullError):
            session.vote(pair.id, "left")
    assert session.describe_progress()["judged"] == 0
    assert session.next_pair() is pair
    session.vote(pair.id, "left")
    assert len(records(session)) == 1


def test_a_pair_that_was_not_shown_cannot_be_voted_on(open_session):
    session = open_session()
    session.next_pair()
    for name in ("", "x", "0" * 64):
        with pytest.raises(VoteRefusedError, match="did not show"):
            session.vote(name, "left")
    assert not session.plan.run.judgements.exists()


def test_the_result_is_that_of_the_log_and_ends_the_votes(open_session):
    session = open_session(12, secret=b"x")
    judge_all(session, lambda pair: "left" if pair.left == "a" else "right")
    result = session.finish()
    assert (result["wins"], result["votes"], result["word"]) == (12, 12, "better")
    assert result["names"] == {"a": "run-1", "b": "base"}
    for row in result["reveal"]:
        assert row["left" if row["choice"] == "left" else "right"] == "run-1"
    with pytest.raises(VoteRefusedError, match="finished"):
        session.vote(next(iter(session._shown.values())).id, "tie")
    with pytest.raises(VoteRefusedError):
        session.undo()
    assert session.next_pair() == "done"
    assert summarize_judgements(records(session))[0].counts.wins == 12


def test_an_unfinished_line_of_a_crash_does_not_disturb_later_votes(open_session):
    session = open_session()
    session.vote(session.next_pair().id, "left")
    path = session.plan.run.judgements
    path.write_bytes(path.read_bytes() + b'{"version":1,"pair":"ab')
    again = open_session()
    again.vote(again.next_pair().id, "tie")
    log = read_judgements(path)
    assert (len(log.records), log.damaged) == (2, 1)
    assert path.stat().st_mode & 0o077 == 0
