"""The chat in a browser: send, stream, stop, versions, storage and failures."""

import json
from pathlib import Path

import pytest

pytest.importorskip("starlette")
pytest.importorskip("uvicorn")

from page_server import RunningServer
from page_steps import ask, wait_until
from starlette.applications import Starlette
from starlette.routing import Mount


def read_messages(page) -> list[str]:
    return page.eval_on_selector_all("#messages .content", "nodes => nodes.map((node) => node.innerText)")


def test_reply_streams_and_conversation_is_sent_again(open_page, fake):
    page = open_page()
    fake.script.delay = 0.05
    page.fill("#question", "one two three four five six seven eight nine ten")
    page.press("#question", "Enter")
    wait_until(page, "document.querySelector('.assistant .content').innerText.length > 20")
    assert "ten" not in read_messages(page)[1]
    page.wait_for_selector("#stop", state="hidden")
    assert read_messages(page)[1] == "A cat answers: one two three four five six seven eight nine ten"
    assert page.evaluate("document.activeElement.id") == "question"
    assert page.inner_text("#messages > li:nth-child(2) .count") == "13 tokens"
    fake.script.delay = 0
    ask(page, "again")
    sent = fake.script.requests[-1]
    assert [message["role"] for message in sent["messages"]] == ["user", "assistant", "user"]
    assert sent["model"] == "cats" and sent["stream"] is True and sent["temperature"] == 0 and "top_p" not in sent


def test_sampling_and_system_prompt_are_sent(open_page, fake):
    page = open_page()
    page.click("#toggle-settings")
    page.fill("#system", "Be short.")
    page.fill("#sampling-temperature", "0.7")
    page.press("#sampling-temperature", "Tab")
    page.fill("#sampling-top_p", "0.9")
    page.fill("#sampling-seed", "7")
    page.fill("#sampling-max_tokens", "33")
    page.press("#sampling-max_tokens", "Tab")
    ask(page, "hello")
    sent = fake.script.requests[-1]
    assert sent["messages"][0] == {"role": "system", "content": "Be short."}
    assert (sent["temperature"], sent["top_p"], sent["seed"], sent["max_tokens"]) == (0.7, 0.9, 7, 33)
    page.click("#tab-compare")
    page.click("#compare details.field summary")
    assert page.input_value("#compare-sampling-temperature") == "0.7"
    page.fill("#compare-sampling-max_tokens", "")
    page.press("#compare-sampling-max_tokens", "Tab")
    page.click("#tab-chat")
    ask(page, "hello again")
    assert "max_tokens" not in fake.script.requests[-1]
    page.fill("#sampling-temperature", "99")
    page.press("#sampling-temperature", "Tab")
    assert page.input_value("#sampling-temperature") == "2"


def test_shift_enter_starts_a_line_and_composition_does_not_send(open_page, fake):
    page = open_page()
    page.fill("#question", "a")
    page.press("#question", "Shift+Enter")
    page.type("#question", "b")
    assert page.input_value("#question") == "a\nb"
    page.evaluate("""() => document.getElementById("question").dispatchEvent(
        new KeyboardEvent("keydown", {key: "Enter", isComposing: true, bubbles: true, cancelable: true}))""")
    assert fake.script.requests == []


def test_stop_keeps_the_part_and_frees_the_server(open_page, fake):
    page = open_page()
    fake.script.delay = 0.05
    page.fill("#question", " ".join(["word"] * 40))
    page.press("#question", "Enter")
    wait_until(page, "document.querySelector('.assistant .content').innerText.length > 20")
    assert page.inner_text(".assistant .body").startswith("A cat answers") and page.is_hidden(".assistant .state")
    page.keyboard.press("Escape")
    page.wait_for_selector("#stop", state="hidden")
    assert page.inner_text(".assistant .state") == "You stopped this reply."
    assert 20 < len(read_messages(page)[1]) < 200
    page.wait_for_timeout(300)
    assert fake.script.stopped == 1


def test_switch_of_the_adapter_and_its_checks(open_page, fake):
    page = open_page()
    assert page.inner_text("#proof-state") == "✓ 3 of 3 checks passed"
    page.click("#proof-state")
    assert "KL 1.2e-08" in page.inner_text("#proof")
    assert "template differs" in page.inner_text("#refused")
    page.select_option("#model", index=2)
    assert page.inner_text("#proof-state") == "3 checks passed, 1 not checked"
    page.select_option("#model", label="base")
    assert page.inner_text("#proof-state") == "base, without adapter"
    ask(page, "hello")
    assert read_messages(page)[1] == "The base answers: hello"
    page.reload()
    page.wait_for_selector("#model option", state="attached")
    assert page.eval_on_selector("#model", "node => node.selectedOptions[0].textContent") == "base"


def test_edit_and_retry_make_versions(open_page, fake):
    page = open_page()
    ask(page, "first")
    ask(page, "second")
    page.click("#messages > li:nth-child(1) .edit")
    page.fill(".editing textarea", "changed")
    page.click("text=Send as new version")
    wait_until(page, "document.querySelectorAll('.assistant .message-foot button').length > 2")
    assert read_messages(page) == ["changed", "A cat answers: changed"]
    page.click("#messages > li:nth-child(1) [aria-label='Previous version']")
    assert read_messages(page) == ["first", "A cat answers: first", "second", "A cat answers: second"]
    fake.script.replies["second"] = "another try"
    page.click("#messages > li:nth-child(4) >> text=Retry")
    wait_until(page, "document.querySelector('#messages > li:nth-child(4)').innerText.includes('another try')")
    page.wait_for_selector("#messages > li:nth-child(4) .versions")
    assert page.inner_text("#messages > li:nth-child(4) .versions .small") == "2 of 2"
    assert len(fake.script.requests[-1]["messages"]) == 3


def test_corrected_reply_is_sent_and_kept(open_page, fake):
    page = open_page()
    ask(page, "first")
    page.click("#messages > li:nth-child(2) .edit")
    page.fill(".editing textarea", "corrected **text**")
    page.keyboard.press("Control+Enter")
    assert page.inner_text("#messages > li:nth-child(2) .content strong") == "text"
    ask(page, "second")
    assert fake.script.requests[-1]["messages"][1]["content"] == "corrected **text**"


def test_reload_keeps_conversations_and_refuses_damaged_ones(open_page, fake):
    page = open_page()
    ask(page, "remember me")
    ask(page, "and me")
    before = read_messages(page)
    page.evaluate("""() => {
        localStorage.setItem("lora-chat/conversation/0123456789abcdef", "{not json");
        localStorage.setItem("lora-chat/conversation/1123456789abcdef", JSON.stringify(
            {version: 1, id: "1123456789abcdef", system: "", messages: [{id: "<img>", role: "user"}], chosen: {}}));
        localStorage.setItem("lora-chat/conversation/2123456789abcdef", JSON.stringify({version: 9}));
        localStorage.setItem("lora-chat/settings", JSON.stringify(
            {sampling: {temperature: "<b>"}, model: 7, compared: "x"}));
    }""")
    page.reload()
    page.wait_for_selector("#messages .assistant")
    assert read_messages(page) == before
    assert page.locator("#conversation-list li").count() == 1
    page.click("#new-conversation")
    ask(page, "a new one")
    assert page.locator("#conversation-list li").count() == 2
    page.click("#conversation-list .title >> text=remember me")
    assert read_messages(page) == before
    page.click("#clear-all")
    page.get_by_role("dialog").get_by_role("button", name="Delete all").click()
    wait_until(page, "!document.querySelector('dialog')")
    assert page.locator("#conversation-list li").count() == 0
    assert page.evaluate("Object.keys(localStorage).filter((key) => key.includes('conversation/')).length") == 0


def test_reload_in_the_middle_keeps_the_part(open_page, fake):
    page = open_page()
    fake.script.delay = 0.1
    page.fill("#question", " ".join(["word"] * 100))
    page.press("#question", "Enter")
    wait_until(page, "document.querySelector('.assistant .content').innerText.length > 30")
    page.reload()
    page.wait_for_selector(".assistant")
    assert len(read_messages(page)[1]) > 20
    assert "connection was lost" in page.inner_text(".assistant .state")


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


def test_reasoning_and_calls_are_shown_as_text(open_page, fake):
    page = open_page()
    fake.script.replies |= {"think": "REASON<b>done</b>", "call": "CALL"}
    ask(page, "think")
    assert page.inner_text("#messages > li:nth-child(2) .content") == "<b>done</b>"
    assert not page.is_visible(".reasoning .plain-text")
    page.click(".reasoning summary")
    assert page.inner_text(".reasoning .plain-text") == "I think about cats."
    ask(page, "call")
    assert page.inner_text(".call code") == "look"
    assert json.loads(page.inner_text(".call pre")) == {"at": "cat"}


def test_meter_shows_the_tokens_of_the_next_prompt(open_page, fake):
    page = open_page()
    page.fill("#question", "one two three")
    page.wait_for_selector("text=3 of 2,048 tokens")
    page.click("#context")
    assert page.locator("dialog tbody tr").count() == 3
    assert page.inner_text("dialog tbody tr:nth-child(2)").split() == ["1", "11", "␣two"]
    page.keyboard.press("Escape")
    page.wait_for_selector("dialog", state="detached")


def test_leaving_or_deleting_a_conversation_ends_its_reply(open_page, fake):
    page = open_page()
    fake.script.delay = 0.05
    page.fill("#question", " ".join(["word"] * 100))
    page.press("#question", "Enter")
    wait_until(page, "document.querySelector('.assistant .content').innerText.length > 20")
    page.click("#new-conversation")
    page.wait_for_selector("#stop", state="hidden")
    assert page.is_visible("#send") and read_messages(page) == []
    page.click("#conversation-list .title")
    assert len(read_messages(page)[1]) > 10
    page.click("#messages >> text=Retry")
    wait_until(page, "document.querySelector('.assistant .content').innerText.length > 20")
    page.click("#conversation-list .delete")
    page.get_by_role("dialog").get_by_role("button", name="Delete").click()
    page.wait_for_selector("#stop", state="hidden")
    page.wait_for_timeout(200)
    assert page.evaluate("Object.keys(localStorage).filter((key) => key.includes('conversation/')).length") == 0


def test_a_cut_reply_is_not_exported_until_it_is_completed(open_page, fake):
    page = open_page()
    fake.script.delay = 0.05
    page.fill("#question", " ".join(["word"] * 60))
    page.press("#question", "Enter")
    wait_until(page, "document.querySelector('.assistant .content').innerText.length > 20")
    page.keyboard.press("Escape")
    page.wait_for_selector("#stop", state="hidden")
    page.click("#export-row")
    assert "not complete" in page.inner_text("#notice")
    page.click("#messages > li:nth-child(2) .edit")
    page.fill(".editing textarea", "A whole reply.")
    page.click("text=Save")
    with page.expect_download() as download:
        page.click("#export-row")
    assert json.loads(Path(download.value.path()).read_text())["messages"][1]["content"] == "A whole reply."


def test_full_storage_is_reported(open_page, fake):
    page = open_page()
    page.evaluate("""() => { try { for (let n = 0; ; n += 1) localStorage.setItem("other" + n, "x".repeat(100_000)); }
        catch { try { for (let n = 0; ; n += 1) localStorage.setItem("small" + n, "x".repeat(50)); } catch { } } }""")
    ask(page, "y" * 500)
    assert "storage is full" in page.inner_text("#notice")
    ask(page, "the chat works without it")
    assert len(read_messages(page)) == 4


def test_two_pages_do_not_overwrite_each_other(open_page, fake):
    first = open_page()
    second = first.context.new_page()
    second.goto(fake.address)
    second.wait_for_selector("#model option", state="attached")
    ask(first, "from the first")
    ask(second, "from the second")
    first.wait_for_selector("#conversation-list >> text=from the second")
    first.reload()
    first.wait_for_selector("#conversation-list li:nth-child(2)")
    assert first.locator("#conversation-list li").count() == 2


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


def test_a_second_reply_waits_for_the_first(open_page, fake):
    page = open_page()
    ask(page, "first")
    page.click("#messages > li:nth-child(1) .edit")
    fake.script.delay = 0.1
    page.fill("#question", "one two three four five six")
    page.press("#question", "Enter")
    page.wait_for_selector(".streaming")
    page.click("text=Send as new version")
    page.fill("#question", "third")
    page.press("#question", "Enter")
    assert page.input_value("#question") == "third"
    assert page.is_visible(".editing textarea")
    page.wait_for_selector("#stop", state="hidden")
    assert len(fake.script.requests) == 2


def test_messages_and_code_are_copied_exactly(open_page, fake):
    page = open_page()
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    reply = "**bold** \\u202e\n\n```py\nif x:\n\tprint('<b>')\n```"
    fake.script.replies["code"] = reply
    ask(page, "code")
    page.click("#messages > li:nth-child(2) .message-foot >> text=Copy")
    assert page.evaluate("navigator.clipboard.readText()") == reply
    page.click(".copy-code")
    assert page.evaluate("navigator.clipboard.readText()") == "if x:\n\tprint('<b>')"
    wait_until(page, "document.querySelector('.copy-code').textContent === 'Copy'")
    # A page from another computer without https has no clipboard interface.
    page.evaluate("Object.defineProperty(navigator, 'clipboard', {value: undefined})")
    page.evaluate("document.addEventListener('copy', () => { window.copied = getSelection().toString() || 'area'; })")
    page.click(".copy-code")
    wait_until(page, "document.querySelector('.copy-code').textContent === 'Copied'")
