"""Ten pairs are judged by keyboard in Chromium, through a reload, an undo and a lost connection."""

import socket
import threading
import time

import pytest

pytest.importorskip("starlette")

from judge_models import ScriptedGenerator, ScriptedModels, make_plan

from lora_chat.evaluation.judgements import summarize_judgements
from lora_chat.runs.judgement_log import read_judgements
from lora_chat.serving.app import create_app
from lora_chat.serving.judging.judge_desk import JudgeDesk
from lora_chat.serving.judging.judge_session import JudgeSession
from lora_chat.serving.server_options import ServerOptions

SETTLE = 450
"""Milliseconds after which a key votes on a new pair."""
HOSTILE = "<img src=x onerror=alert(1)> **bold** [x](javascript:alert(1)) \u202e"


@pytest.fixture
def served(tmp_path, tiny_tokenizer):
    """Return a function that serves a session with scripted replies on a free port, and stops it at the end."""
    uvicorn = pytest.importorskip("uvicorn")
    servers = []

    def serve(prompts=12, *, is_only_page=True, reply=None):
        generator = ScriptedGenerator(tiny_tokenizer)
        generator.reply = reply or (lambda adapter, number: f"{'trained' if adapter else 'plain'} {number} {HOSTILE}")
        models = ScriptedModels(generator)
        session = JudgeSession(make_plan(tmp_path, tiny_tokenizer, prompts), models)
        desk = JudgeDesk(lambda: session, is_only_page=is_only_page)
        bound = socket.create_server(("127.0.0.1", 0))
        options = ServerOptions(port=bound.getsockname()[1])
        config = uvicorn.Config(create_app(models, options, judging=desk), log_config=None, lifespan="off")
        server = uvicorn.Server(config)
        server.install_signal_handlers = lambda: None
        thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]}, daemon=True)
        thread.start()
        servers.append((server, thread))
        while not server.started:
            time.sleep(0.02)
        desk.announce(f"http://127.0.0.1:{options.port}")
        return desk

    yield serve
    for server, thread in servers:
        server.should_exit = True
        thread.join(10)


@pytest.fixture
def open_page(browser):
    problems, contexts = [], []

    def open_one(desk, first=None, **options):
        context = browser.new_context(**{"viewport": {"width": 1200, "height": 900}, **options})
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(10_000)
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("dialog", lambda dialog: problems.append(dialog.message))
        page.goto(desk.link.partition("/#")[0] + first if first else desk.link)
        return page

    yield open_one
    for context in contexts:
        context.close()
    assert problems == []


def read_number(page):
    return page.evaluate("document.querySelector('.judge-number')?.textContent ?? null")


def press(page, key):
    """Press a key that votes, and wait for the next pair or the end."""
    before = read_number(page)
    page.wait_for_timeout(SETTLE)
    page.keyboard.press(key)
    end = time.monotonic() + 10
    while page.locator(".judge-done").count() == 0 and read_number(page) in (None, before):
        assert time.monotonic() < end, (key, page.inner_text("#judge"))
        page.wait_for_timeout(20)


def records(desk):
    return read_judgements(desk.find_session().plan.run.judgements).records


def test_ten_pairs_by_keyboard(served, open_page):
    desk = served(10)
    page = open_page(desk)
    page.wait_for_selector(".judge-reply")
    assert page.url.endswith("/#judge")  # the token is not in the address any more
    assert page.evaluate("document.activeElement.className") == "judge-number"
    assert page.locator("#judge img, #judge script, #judge a[href^=javascript]").count() == 0
    for key in ("1", "ArrowLeft", "2", "ArrowRight"):
        press(page, key)
    page.keyboard.press("n")
    page.keyboard.type("1 2 x u note")
    page.keyboard.press("Escape")
    assert page.evaluate("document.activeElement.className") == "judge-number"
    press(page, "0")
    assert records(desk)[-1].note == "1 2 x u note"
    number = page.inner_text(".judge-number")
    replies = page.inner_text(".judge-replies")
    page.reload()
    page.wait_for_selector(".judge-reply")
    assert (page.inner_text(".judge-number"), page.inner_text(".judge-replies")) == (number, replies)
    page.keyboard.press("u")
    while read_number(page) in (None, number):
        page.wait_for_timeout(20)
    press(page, "x")
    for key in ("1", "1", "2", "0", "x"):
        press(page, key)
    page.wait_for_selector(".judge-done")
    page.keyboard.press("Enter")  # the button of the result has the focus
    page.wait_for_selector(".judge-result")
    (result,) = summarize_judgements(records(desk))
    text = page.inner_text(".judge-result")
    assert (result.votes, result.counts.pairs) == (10, 10)
    assert f"in {result.counts.wins} of {result.counts.decided} decided pairs" in text
    choices = [record.choice for record in records(desk) if record.kind == "vote"]
    assert choices == ["left", "left", "right", "right", "tie", "both bad", "left", "left", "right", "tie", "both bad"]
    assert page.locator(".judge-reveal tbody tr").count() == 10


def test_a_held_or_early_key_votes_once_at_most(served, open_page):
    desk = served()
    page = open_page(desk)
    page.wait_for_selector(".judge-reply")
    page.wait_for_timeout(SETTLE)
    page.keyboard.down("1")
    for _ in range(5):
        page.keyboard.down("1")  # repeats
    page.keyboard.up("1")
    page.keyboard.press("2")
    page.wait_for_timeout(300)
    assert len(records(desk)) == 1


def test_down_scrolls_a_long_pair_before_it_votes(served, open_page):
    desk = served(reply=lambda adapter, number: f"{adapter}\n\n" + "a line\n\n" * 90)
    page = open_page(desk)
    page.wait_for_selector(".judge-reply")
    page.wait_for_timeout(SETTLE)
    assert page.locator(".judge-bar").bounding_box()["y"] < 900  # the buttons are in the window
    page.keyboard.press("ArrowDown")
    page.wait_for_timeout(300)
    assert not desk.find_session().plan.run.judgements.exists()
    assert page.evaluate("document.getElementById('content').scrollTop") > 0
    press(page, "0")
    assert page.evaluate("document.getElementById('content').scrollTop") == 0
    assert len(records(desk)) == 1


def test_a_lost_connection_loses_no_vote(served, open_page):
    desk = served()
    page = open_page(desk)
    page.wait_for_selector(".judge-reply")
    page.context.set_offline(True)
    page.wait_for_timeout(SETTLE)
    page.keyboard.press("1")
    page.wait_for_selector("text=The vote is not stored.")
    page.context.set_offline(False)
    press(page, "1")
    assert [record.choice for record in records(desk)] == ["left"]


def test_a_spent_link_opens_nothing(served, open_page):
    desk = served()
    link = desk.link
    open_page(desk).wait_for_selector(".judge-reply")
    other = open_page(desk, viewport={"width": 390, "height": 844})
    other.wait_for_selector(".judge-reply")
    assert other.evaluate("document.documentElement.scrollWidth <= innerWidth")
    stranger = other.context.browser.new_context().new_page()
    stranger.goto(link)
    stranger.wait_for_selector(".judge-problem")
    assert "was used already" in stranger.inner_text("#judge")
    stranger.goto(desk.link)  # in the same tab
    stranger.wait_for_selector(".judge-reply")
    stranger.context.close()


def test_the_tab_of_the_whole_page_judges_too(served, open_page):
    desk = served(is_only_page=False)
    page = open_page(desk, first="/")
    page.click("#tab-judge")
    page.wait_for_selector(".judge-problem")
    assert "newest link" in page.inner_text("#judge")
    page.click("#tab-chat")
    page.goto(desk.link)
    page.wait_for_selector(".judge-reply")
    assert page.get_attribute("#tab-judge", "aria-selected") == "true"
    press(page, "1")
    page.focus("#tab-judge")
    page.keyboard.press("ArrowLeft")  # moves to another tab and does not vote
    page.wait_for_timeout(300)
    assert len(records(desk)) == 1
    page.keyboard.press("1")
    page.wait_for_timeout(300)
    assert len(records(desk)) == 1  # the view is not shown
