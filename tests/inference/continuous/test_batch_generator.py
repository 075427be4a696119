"""Limits, ends and failures of requests, and functions that run between steps."""

import math
import threading
import time

import pytest
import torch

from lora_chat.config.generation_section import GenerationSection
from lora_chat.inference.continuous.batch_generator import BatchGenerator
from lora_chat.inference.continuous.request import BatchLimits, QueueFullError, RequestTooLongError
from tests.inference.continuous.served_bases import ask, make_prompts, make_served_base

PROMPTS = make_prompts((6, 21, 13))
SAMPLED = GenerationSection(temperature=1.3, top_p=0.8, seed=5)


@pytest.fixture(scope="module")
def served(random_base, tmp_path_factory):
    return make_served_base(random_base("llama", 8.0), {}, tmp_path_factory.mktemp("none"))


@pytest.fixture(scope="module")
def model(served):
    return served.load()


@pytest.fixture
def make_generator(served):
    made = []

    def make(**limits):
        made.append(BatchGenerator(served.load(), 0, BatchLimits(**{"max_cache_tokens": 4000} | limits)))
        return made[-1]

    yield make
    for generator in made:
        generator.close(5)


@pytest.fixture(scope="module")
def generator(served):
    generator = BatchGenerator(served.load(), 0, BatchLimits(max_running=4, max_waiting=3, max_cache_tokens=4000))
    yield generator
    generator.close(5)


def test_samples_draw_as_generate_ids_does(served, generator):
    expected = [served.reply(None, prompt, 10, generation=SAMPLED) for prompt in PROMPTS]
    replies = [ask(generator, prompt, num_tokens=10, generation=SAMPLED) for prompt in PROMPTS]
    assert [reply.wait().ids for reply in replies] == expected
    others = [ask(generator, PROMPTS[0], num_tokens=10, generation=SAMPLED, number=n).wait().ids for n in (0, 1)]
    assert others[0] == expected[0] != others[1]


def test_log_probabilities_are_those_of_the_unscaled_logits(served, generator):
    reply = ask(generator, PROMPTS[0], num_tokens=3, generation=SAMPLED, top_logprobs=4).wait()
    ids = torch.tensor([[*PROMPTS[0], *reply.ids]])
    with torch.no_grad():
        expected = served.alone(None)(input_ids=ids).logits[0].float().log_softmax(dim=-1)
    for number, token in enumerate(reply.tokens):
        row = expected[len(PROMPTS[0]) - 1 + number]
        assert token.logprob == pytest.approx(float(row[token.token]), abs=0.05)
        assert [value for _, value in token.top] == pytest.approx(row.topk(4).values.tolist(), abs=0.05)
    assert math.isnan(ask(generator, PROMPTS[0], num_tokens=1).wait().tokens[0].logprob)


def test_a_stop_token_ends_a_reply_and_is_not_passed_on(served, generator):
    ids = served.reply(None, PROMPTS[1], 10)
    stop = ids[-1]
    reply = ask(generator, PROMPTS[1], num_tokens=10, stop_ids=(stop,)).wait()
    assert reply.ids == ids[: ids.index(stop)]
    assert reply.finish.reason == "stop"


def test_requests_that_never_fit_and_a_full_line_are_refused(make_generator):
    generator = make_generator(max_running=1, max_waiting=2, max_cache_tokens=100, positions=80)
    for prompt in ((), (-1, 4), (4, 10**6)):
        with pytest.raises(ValueError, match="prompt"):
            ask(generator, prompt)
    with pytest.raises(RequestTooLongError, match="positions"):
        ask(generator, PROMPTS[0], num_tokens=75)
    release = block(generator)
    waiting = [ask(generator, PROMPTS[0], num_tokens=2) for _ in range(2)]
    with pytest.raises(QueueFullError):
        ask(generator, PROMPTS[0], num_tokens=2)
    release()
    assert [reply.wait().finish.reason for reply in waiting] == ["length", "length"]
    small = make_generator(max_cache_tokens=20)
    with pytest.raises(RequestTooLongError, match="memory"):
        ask(small, PROMPTS[1], num_tokens=2)


def block(generator):
    """Let the generator's thread wait, and return a function that releases it."""
    event, started = threading.Event(), threading.Event()
    threading.Thread(target=lambda: generator.run_between_steps(lambda model: (started.set(), event.wait(20)))).start()
    assert started.wait(20)
    return event.set


def test_cancelled_and_late_replies_end_and_others_continue(served, generator):
    release = block(generator)
    running = [ask(generator, PROMPTS[0], num_tokens=400) for _ in range(2)]
    other = ask(generator, PROMPTS[2], num_tokens=30)
    release()
    assert running[0].first.wait(20)
    running[0].ticket.cancel()
    late = ask(generator, PROMPTS[1], num_tokens=400, deadline=time.monotonic() + 0.05)
    assert running[0].wait().finish.reason == "cancelled"
    assert late.wait().finish.reason == "deadline"
    assert other.wait().ids == served.reply(None, PROMPTS[2], 30)
    running[1].ticket.cancel()
    assert running[1].wait().finish.reason == "cancelled"
    assert generator.statistics().running == 0


def test_failures_end_their_requests_and_the_thread_continues(generator, caplog, monkeypatch):
    def receive_badly(item):
        raise RuntimeError("a receiver that fails")

    ask(generator, PROMPTS[0]).ticket.receive = receive_badly
    batched = generator._answers._batched
    with monkeypatch.context() as patched:
        patched.setattr(batched, "decode", lambda rows: 1 / 0)
        assert ask(generator, PROMPTS[0]).wait().finish.reason == "failed"
    with monkeypatch.context() as patched:
        patched.setattr(batched, "decode", lambda rows: torch.full((len(rows), 300), math.nan))
        reply = ask(generator, PROMPTS[0]).wait()
        assert (reply.finish.reason, len(reply.tokens)) == ("failed", 1)
    with pytest.raises(RuntimeError, match="another one"):
        generator.run_between_steps(lambda model: generator.run_between_steps(lambda inner: 0))
    with pytest.raises(ZeroDivisionError):
        generator.run_between_steps(lambda model: 1 / 0)
    assert generator.run_between_steps(lambda model: model.config.model_type) == "llama"
    assert ask(generator, PROMPTS[0]).wait().finish.reason == "length"
    assert ask(generator, PROMPTS[0], adapter="served_99").wait().finish.reason == "removed"


def test_functions_run_while_requests_run(generator):
    running = ask(generator, PROMPTS[0], num_tokens=400)
    assert running.first.wait(20)
    assert generator.run_between_steps(lambda model: 7) == 7
    assert running.finish is None
    running.ticket.cancel()
    running.wait()


def test_closing_ends_what_does_not_end_in_time(make_generator):
    generator = make_generator(max_running=1)
    running, waiting = (ask(generator, PROMPTS[0], num_tokens=400) for _ in range(2))
    assert running.first.wait(20)
    generator.close(0.01)
    assert {running.wait().finish.reason, waiting.wait().finish.reason} == {"cancelled"}
    assert not generator.is_alive
    with pytest.raises(QueueFullError):
        ask(generator, PROMPTS[0])
    with pytest.raises(RuntimeError):
        generator.run_between_steps(lambda model: 0)


def test_memory_stays_flat_and_no_range_is_lost(make_generator):
    generator = make_generator(max_running=4, max_cache_tokens=200)
    for number in range(60):
        ask(generator, PROMPTS[number % 3], num_tokens=1 + number % 3).wait()
    release = block(generator)
    replies = [ask(generator, prompt, num_tokens=60) for prompt in PROMPTS]
    release()
    assert {reply.wait().finish.reason for reply in replies} == {"length"}
    assert generator.statistics().finished == 63
    assert generator.statistics().cache_tokens <= sum(map(len, PROMPTS))
