"""Hostile replies, names and streams in a browser: they stay text, take bounded time, and load nothing."""

import time

import pytest
from page_steps import ask

HOSTILE = (
    "<script>window.hacked = 1</script>",
    "<img src=x onerror=window.hacked=1>",
    "[x](javascript:window.hacked=1)",
    "[x](data:text/html,<script>1</script>)",
    "![x](http://127.0.0.1:9/pixel.png)",
    "<svg/onload=window.hacked=1>",
    "[x](vbscript:x) [y](JaVaScRiPt:x) [z](\u0001javascript:x) [w](//evil.example)",
    "`<b>`\n```html\n<iframe src=x>\n```",
    '[x](https://a.example" onclick="window.hacked=1)',
    "<a href=javascript:1>x</a>",
    "| <b> |\n|---|\n| <script>1</script> |",
    "[bank](https://bank.example@evil.example/)",
    "&lt;script&gt;",
    "<style>*{display:none}</style>",
)
SLOW = (
    "x" * 1_000_000,
    "*" * 100_000,
    "[" * 100_000,
    "*a _b " * 20_000,
    "`" * 50_000 + "a" + "`" * 49_999,
    "> " * 50_000,
    "![](" * 30_000,
    "[a](" * 30_000,
    "- " * 50_000,
    "|" * 100_000 + "\n" + "|-" * 50_000,
    "\n".join("- " * n for n in range(200)),
    "".join("`" * (n % 300 + 1) + " " for n in range(3000)),
    "\n" * 100_000,
    "https://" * 15_000,
    " " * 100_000 + "x",
    "**a" * 30_000,
    "_a_" * 30_000,
    "~~a" * 30_000,
    "\\" * 100_000,
    "[[a](b)" * 20_000,
    "1. " * 30_000,
    "#" * 100_000,
    "[a](http://" * 3500,
    ("*a " * 300 + "\n\n") * 100,
    "[a](" + "(" * 1990,
    ("[a](" + "x" * 1990 + "\n") * 19,
    "![[" * 13_000,
    "[](](" * 7800,
    "`a``b" * 7000,
    "***a " * 6000 + "***" * 1000,
    "_*" * 19_000,
    "a*b_c~~" * 5000,
    "[]" * 19_000,
    "http://a" * 4000 + ")" * 3000,
    "[a](https://x.example) " * 5000,
    "| a | b |\n|---|---|\n" + "| 1 | 2 |\n" * 10_000,
)


def test_hostile_replies_stay_text(open_page, fake):
    page = open_page()
    requests = []
    page.on("request", lambda request: requests.append(request.url))
    fake.script.replies["attack"] = "\n\n".join(HOSTILE)
    ask(page, "attack")
    ask(page, "<img src=x onerror=window.hacked=1>")
    assert page.evaluate("window.hacked") is None
    forbidden = "#messages script, #messages img, #messages svg, #messages iframe, #messages style, #messages [onclick]"
    assert page.locator(forbidden).count() == 0
    links = page.eval_on_selector_all(
        "#messages a", "nodes => nodes.map((node) => [node.protocol, node.rel, node.host])"
    )
    assert all(scheme in ("http:", "https:") and "noopener" in rel and "noreferrer" in rel for scheme, rel, _ in links)
    assert "evil.example" not in {host for _, _, host in links}
    assert all(url.startswith(fake.address) for url in requests)
    text = page.inner_text("#messages > li:nth-child(2)")
    assert "<script>window.hacked = 1</script>" in text and "javascript:window.hacked=1" in text


def test_address_of_a_link_is_visible(open_page, fake):
    page = open_page()
    fake.script.replies["link"] = "[your bank](https://xn--bnk-5cd.example/a) and https://plain.example/b."
    ask(page, "link")
    assert "(https://xn--bnk-5cd.example/a)" in page.inner_text(".assistant .content")
    assert page.locator(".assistant a").nth(1).get_attribute("href") == "https://plain.example/b"


def test_hostile_names_and_directions_show_escapes(open_page, fake):
    page = open_page()
    page.select_option("#model", index=2)
    ask(page, "hello\u202eolleh")
    shown = page.inner_text("#messages")
    assert "<script>alert(1)</script>\\u202egnp.exe" in shown
    assert "hello\\u202eolleh" in shown
    page.click("#toggle-settings")
    assert "bad<img src=x onerror=alert(1)>" in page.inner_text("#refused")
    assert page.locator("#refused img").count() == 0
    assert fake.script.requests[-1]["messages"][0]["content"] == "hello\u202eolleh", "the model gets the exact text"


@pytest.mark.parametrize("text", SLOW, ids=range(len(SLOW)))
def test_hostile_markdown_takes_bounded_time(open_page, fake, text):
    page = open_page()
    began = time.monotonic()
    milliseconds = page.evaluate(
        """async (text) => {
            const { renderMarkdown, MarkdownView } = await import("/static/markdown.js");
            const began = performance.now();
            renderMarkdown(text);
            renderMarkdown(text.slice(0, 39_000));
            const view = new MarkdownView(document.createElement("div"));
            for (let at = 0; at <= 4; at += 1) { view.text = text.slice(0, (text.length * at) / 4); view.draw(); }
            return performance.now() - began;
        }""",
        text,
    )
    assert milliseconds < 3000 and time.monotonic() - began < 20


def test_a_line_of_a_megabyte_arrives(open_page, fake):
    page = open_page()
    fake.script.replies["long"] = "y" * 1_000_000
    ask(page, "long")
    assert page.evaluate("document.querySelector('.assistant .content').textContent.length") == 1_000_000
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_malformed_chunks_do_not_break_the_page(open_page, fake):
    page = open_page(expect_errors=True)
    chunks = (
        '{"choices": []}',
        "null",
        "7",
        '{"choices": [{"delta": {"content": 5, "tool_calls": [null, 1]}}]}',
        '{"choices": [{"delta": {"content": "ok"}, "finish_reason": "stop", "logprobs": {"content": [1]}}]}',
        "[DONE]",
    )
    body = "".join(f"data: {chunk}\r\n\r\n" for chunk in chunks)
    page.route("**/v1/chat/completions", lambda route: route.fulfill(body=body, content_type="text/event-stream"))
    ask(page, "hello")
    assert page.inner_text(".assistant .content") == "ok"
    part = 'data: {"choices": [{"delta": {"content": "part"}}]}\n\n'
    broken = part + 'data: {"error": {"message": "<b>out of memory</b>"}}\n\n'
    page.route("**/v1/chat/completions", lambda route: route.fulfill(body=broken, content_type="text/event-stream"))
    ask(page, "again")
    assert "<b>out of memory</b>" in page.inner_text(".error-card")
    page.route("**/v1/chat/completions", lambda route: route.fulfill(body="data: {", content_type="text/event-stream"))
    ask(page, "again")
    page.route(
        "**/v1/models", lambda route: route.fulfill(json={"data": [None, {"id": 7}, {"id": "x", "checks": "no"}]})
    )
    page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")
    page.wait_for_selector("#model option >> text=x", state="attached")
