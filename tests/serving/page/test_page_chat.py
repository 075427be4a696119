"""The chat in a browser: send, stream, stop, versions, export."""

import json
from pathlib import Path

from page_steps import ask, read_messages, wait_until


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
