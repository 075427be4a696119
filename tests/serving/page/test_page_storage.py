"""Conversations in the browser: reload, leaving, deleting, full storage, two pages."""

from page_steps import ask, read_messages, wait_until


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
