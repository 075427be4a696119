"""Failures in a browser: lost server, broken streams, refusals, missing and other models."""

import json

import pytest

pytest.importorskip("starlette")
pytest.importorskip("uvicorn")

from page_server import RunningServer
from page_steps import ask, read_messages
from starlette.applications import Starlette
from starlette.routing import Mount


def test_lost_server_is_shown_and_found_again(open_page, fake):
    page = open_page(expect_errors=True)
    ask(page, "hello")
    port = fake.running.port
    fake.running.close()
    page.fill("#question", "are you there")
    page.press("#question", "Enter")
    page.wait_for_selector(".error-card")
    assert "does not answer" in page.inner_text(".error-card")
    assert page.is_visible("#connection")
    fake.running = RunningServer(fake.script.build_app(), port)
    page.wait_for_selector("#connection", state="hidden")
    page.click(".error-card >> text=Try again")
    page.wait_for_selector("#messages > li:nth-child(4) .message-foot button")
    assert read_messages(page)[-1] == "A cat answers: are you there"


def test_broken_stream_keeps_the_part(open_page, fake):
    page = open_page(expect_errors=True)
    fake.script.break_after, fake.script.delay = 4, 0.05
    page.fill("#question", "one two three")
    page.press("#question", "Enter")
    page.wait_for_selector(".error-card")
    assert "lost" in page.inner_text(".error-card")
    assert read_messages(page)[1] == "A cat answers: one"
    fake.script.break_after = None
    page.click(".error-card >> text=Try again")
    page.wait_for_selector(".assistant .versions")
    assert read_messages(page)[1] == "A cat answers: one two three"


def test_busy_server_counts_down(open_page, fake):
    page = open_page(expect_errors=True)
    error = {"error": {"message": "Too many requests <b>wait</b>.", "type": "rate_limit_error", "code": None}}
    fake.script.status = (429, error, {"retry-after": "2"})
    page.fill("#question", "hello")
    page.press("#question", "Enter")
    page.wait_for_selector(".error-card")
    assert "busy" in page.inner_text(".error-card") and "<b>wait</b>" in page.inner_text(".error-card")
    assert page.is_disabled(".error-card button")
    assert "Try again in" in page.inner_text(".error-card button")
    fake.script.status = None
    page.wait_for_selector(".error-card button:enabled")
    page.click(".error-card button")
    page.wait_for_selector(".assistant .message-foot button")
    assert read_messages(page) == ["hello", "A cat answers: hello"]


def test_key_and_refusals_are_in_words(open_page, fake):
    page = open_page(expect_errors=True)
    for status, words in ((401, "needs a key"), (400, "too long"), (500, "status 500"), (404, "choose another")):
        content = {"error": {"message": "The prompt is too long." if status == 400 else "", "type": "x"}}
        fake.script.status = (status, content, {})
        page.fill("#question", f"try {status}")
        page.press("#question", "Enter")
        page.wait_for_selector(f".error-card >> text={words}")


def test_models_that_cannot_be_listed_are_asked_for_again(open_page, fake):
    page = open_page(expect_errors=True)
    page.route("**/v1/models", lambda route: route.fulfill(status=500, json={"error": {"message": "<b>no</b>"}}))
    page.reload()
    page.wait_for_selector("#load-failure >> text=<b>no</b>")
    page.fill("#question", "hello")
    page.press("#question", "Enter")
    assert "serves no model" in page.inner_text("#notice")
    assert page.input_value("#question") == "hello"
    page.unroute("**/v1/models")
    page.click("#load-failure button")
    page.wait_for_selector("#model option", state="attached")
    assert not page.is_visible("#load-failure")
    assert "cats answers; 3 of 3 checks passed" in page.inner_text("#empty-model")


def test_reply_of_another_model_shows_its_name(open_page, fake):
    page = open_page()
    chunk = {"model": "someone-else", "choices": [{"delta": {"content": "hi"}, "finish_reason": "stop"}]}
    body = f"data: {json.dumps(chunk)}\n\ndata: [DONE]\n\n"
    page.route("**/v1/chat/completions", lambda route: route.fulfill(body=body, content_type="text/event-stream"))
    ask(page, "hello")
    assert page.inner_text(".assistant .speaker") == "someone-else"
    page.click("#tab-compare")
    page.fill("#compare-prompt", "hello")
    page.press("#compare-prompt", "Enter")
    page.wait_for_selector(".column >> text=The server answered with someone-else.")


def test_page_works_under_a_prefix(browser, fake):
    app = Starlette(routes=[Mount("/models/here", app=fake.script.build_app())])
    running = RunningServer(app)
    try:
        page = browser.new_page()
        page.goto(f"{running.address}models/here/")
        page.wait_for_selector("#model option", state="attached")
        ask(page, "hello")
        assert read_messages(page)[1] == "A cat answers: hello"
    finally:
        page.close()
        running.close()
