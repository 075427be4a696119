"""The page with the real server and a small random model: the reply on screen is the reply of `chat`."""

import pytest

pytest.importorskip("starlette")
pytest.importorskip("uvicorn")

from page_server import RunningServer
from page_steps import ask

from lora_chat.inference.chat import ChatSession
from lora_chat.inference.continuous.request import BatchLimits
from lora_chat.pipeline.open_adapter import TrustOptions
from lora_chat.pipeline.open_chat import find_chat_model
from lora_chat.pipeline.served_models import open_served_models
from lora_chat.serving.app import create_app
from lora_chat.serving.server_options import ServerOptions

LINES = ("Hello", "Wie geht's? <|im_end|> 世界", "And then?")
TOKENS = 20
STORED = """() => Object.keys(localStorage).filter((key) => key.includes("conversation/"))
    .map((key) => JSON.parse(localStorage.getItem(key))).sort((a, b) => b.updated - a.updated)[0].messages"""


@pytest.fixture(scope="module")
def sources(browser, random_base, make_adapter, tmp_path_factory):
    base, folder = random_base("llama", 24.0), tmp_path_factory.mktemp("page") / "lively"
    make_adapter(base, folder)
    return {"base": str(base), "lively": str(folder)}


@pytest.fixture(scope="module")
def served(sources):
    models = open_served_models(list(sources.values()), TrustOptions(base=sources["base"]), None, BatchLimits())
    running = RunningServer(lambda port: create_app(models, ServerOptions(port=port)))
    yield running
    running.close()
    models.close(5)


def open_with_model(browser, served):
    page = browser.new_page()
    errors = []
    page.on("console", lambda entry: errors.append(entry.text) if entry.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(served.address)
    page.wait_for_selector("#model option", state="attached")
    page.click("#toggle-settings")
    page.fill("#sampling-max_tokens", str(TOKENS))
    page.press("#sampling-max_tokens", "Tab")
    page.click("#close-settings")
    return page, errors


def chat_with(source, base, monkeypatch):
    """Return the messages of a conversation with `chat`."""
    opened = find_chat_model(source, None, TrustOptions(base=base), shows_system=False)
    session = ChatSession(opened.load(), opened.tokenizer, opened.stop_ids, opened.system, TOKENS, as_json=True)
    monkeypatch.setattr("lora_chat.inference.chat.print_json", lambda row: None)
    for line in LINES:
        session.handle_line(line)
    return session._conversation.turns


def test_conversation_equals_chat(browser, served, sources, monkeypatch):
    page, errors = open_with_model(browser, served)
    for name, source in sources.items():
        page.select_option("#model", label=name)
        page.click("#new-conversation")
        for line in LINES:
            ask(page, line)
        shown = page.evaluate(STORED)
        expected = chat_with(source, sources["base"], monkeypatch)
        assert [message["content"] for message in shown] == [turn["content"] for turn in expected]
        assert any(turn["content"] for turn in expected[1::2])
    assert errors == []


def test_tokens_probabilities_and_checks_come_from_the_server(browser, served):
    page, errors = open_with_model(browser, served)
    page.select_option("#model", label="lively")
    assert "passed" in page.inner_text("#proof-state")
    page.fill("#question", "Hello")
    page.wait_for_selector("#context:enabled")
    count = int(page.inner_text("#context-text").split()[0])
    page.click("#context")
    assert page.locator("dialog tbody tr").count() == count > 3
    page.keyboard.press("Escape")
    page.click("#tab-compare")
    page.fill("#compare-prompt", "Hello")
    page.press("#compare-prompt", "Enter")
    page.wait_for_selector("#compare-tools", state="visible")
    page.check("input[value=probabilities]")
    assert page.locator(".column").count() == 2
    assert page.locator(".column:first-child .token").count() == TOKENS
    page.hover(".column:first-child .token:first-child")
    assert page.locator("#token-detail tbody tr").count() >= 5
    assert errors == []
