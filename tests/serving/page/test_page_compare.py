"""The comparison in a browser: parallel replies, marked differences, and probabilities of tokens."""

from page_steps import ask, wait_until


def compare(page, text: str) -> None:
    page.click("#tab-compare")
    page.fill("#compare-prompt", text)
    page.press("#compare-prompt", "Enter")
    page.wait_for_selector("#compare-tools", state="visible")


def test_differences_are_marked_beside_the_base(open_page, fake):
    page = open_page()
    compare(page, "hello")
    columns = page.locator(".column")
    assert columns.count() == 3
    assert columns.nth(0).locator("ins, del").count() == 0
    cats = columns.nth(1)
    assert cats.locator("ins").all_inner_texts() == ["A cat "]
    assert cats.locator("del").all_inner_texts() == ["The base "]
    assert "2 words added, 2 words removed" in cats.inner_text()
    assert "The same words as the reference" in columns.nth(2).inner_text()
    assert {request["model"] for request in fake.script.requests} == set(fake.script.models)
    assert all(request["logprobs"] and request["top_logprobs"] == 5 for request in fake.script.requests)


def test_replies_stream_at_the_same_time_and_stop(open_page, fake):
    page = open_page()
    fake.script.delay = 0.05
    page.click("#tab-compare")
    page.fill("#compare-prompt", " ".join(["word"] * 60))
    page.click("#compare-run")
    wait_until(page, "[...document.querySelectorAll('.column .content')].every((node) => node.innerText.length > 20)")
    page.keyboard.press("Escape")
    page.wait_for_selector("#compare-tools", state="visible")
    assert page.locator(".column >> text=You stopped this reply.").count() == 3
    page.wait_for_timeout(300)
    assert fake.script.stopped == 3


def test_probabilities_by_pointer_and_keyboard(open_page, fake):
    page = open_page()
    compare(page, "hello")
    page.check("input[value=probabilities]")
    page.hover(".column:first-child .token:nth-child(2)")
    detail = page.inner_text("#token-detail")
    assert "token 2 of 4" in detail and "67.0 %" in detail and "<b>other</b>" in detail
    page.hover("h1")
    page.wait_for_selector("#token-detail", state="hidden")
    page.focus(".column:nth-child(2) .tokens-view")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    assert "cats, token 3 of 4" in page.inner_text("#token-detail")
    active = page.get_attribute(".column:nth-child(2) .tokens-view", "aria-activedescendant")
    assert page.get_attribute(f"#{active}", "aria-selected") == "true"
    page.keyboard.press("End")
    assert "token 4 of 4" in page.inner_text("#token-detail")
    lines = page.eval_on_selector_all(
        ".column:first-child .token", "nodes => nodes.map((node) => getComputedStyle(node).textDecorationStyle)"
    )
    assert len(set(lines)) >= 3, "levels must differ by more than colour"


def test_one_refused_model_leaves_the_others(open_page, fake):
    page = open_page(expect_errors=True)
    page.route(
        "**/v1/chat/completions",
        lambda route: route.abort() if "cats" in route.request.post_data else route.continue_(),
    )
    compare(page, "hello")
    assert "does not answer" in page.locator(".column").nth(1).inner_text()
    assert "The base answers: hello" in page.locator(".column").nth(0).inner_text()


def test_conversation_is_taken_over(open_page, fake):
    page = open_page()
    page.click("#toggle-settings")
    page.fill("#system", "Be short.")
    ask(page, "first")
    ask(page, "second")
    page.click("#messages > li:nth-child(3) >> text=Compare")
    assert page.input_value("#compare-prompt") == "second"
    assert "After a conversation of 2 messages" in page.inner_text("#compare-history")
    fake.script.requests.clear()
    page.press("#compare-prompt", "Enter")
    page.wait_for_selector("#compare-tools", state="visible")
    roles = [message["role"] for message in fake.script.requests[0]["messages"]]
    assert roles == ["system", "user", "assistant", "user"]
    page.click("#compare-history-drop")
    fake.script.requests.clear()
    page.press("#compare-prompt", "Enter")
    wait_until(page, "document.querySelector('#compare-stop').hidden")
    assert [message["role"] for message in fake.script.requests[0]["messages"]] == ["system", "user"]


def test_server_that_refuses_probabilities_is_compared_without(open_page, fake):
    page = open_page(expect_errors=True)
    fake.script.refuses_logprobs = True
    compare(page, "hello")
    assert page.locator(".column").nth(1).locator("ins").all_inner_texts() == ["A cat "]
    page.check("input[value=probabilities]")
    assert "sent no probabilities" in page.locator(".column").nth(1).inner_text()
