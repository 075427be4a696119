"""The page by keyboard, by screen reader and on a phone."""

import pytest
from page_steps import ask, wait_until

NAMES = """() => [...document.querySelectorAll("button, select, input, textarea, [role], meter, summary, pre, aside")]
    .filter((node) => node.checkVisibility() && node.getAttribute("aria-hidden") !== "true")
    .filter((node) => {
        const ids = (node.getAttribute("aria-labelledby") || "").split(" ");
        const labels = ids.map((id) => document.getElementById(id));
        const texts = [node.ariaLabel, node.textContent, ...labels.map((one) => one && one.textContent),
            ...[...(node.labels || [])].map((one) => one.textContent)];
        return !texts.some((text) => text && text.trim());
    })
    .filter((node) => !node.matches("[role=status]"))
    .map((node) => node.outerHTML.slice(0, 120))"""
SMALL = """() => [...document.querySelectorAll("button, select, input, textarea, summary, [role=tab], .choice")]
    .filter((node) => node.checkVisibility() && !node.matches("label input"))
    .map((node) => [node.outerHTML.slice(0, 80), node.getBoundingClientRect()])
    .filter(([, box]) => box.width < 44 || box.height < 44)
    .map(([html, box]) => html + " " + Math.round(box.width) + "x" + Math.round(box.height))"""
WIDE = """() => [document.documentElement.scrollWidth - innerWidth, ...[...document.querySelectorAll("main *")]
    .filter((node) => node.checkVisibility() && !node.closest("pre, .scroll, .hidden, .title"))
    .filter((node) => node.getBoundingClientRect().right > innerWidth + 1)
    .map((node) => node.outerHTML.slice(0, 100))]"""
LONG = (
    "word " * 30
    + "x" * 300
    + "\n\n```\n"
    + "code " * 60
    + "\n```\n\n"
    + "|a" * 20
    + "\n"
    + "|-" * 20
    + "\n"
    + "|12345" * 20
)


def test_everything_by_keyboard(open_page, fake):
    page = open_page()
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the content"
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "tab-chat"
    page.keyboard.press("ArrowRight")
    assert page.is_visible("#compare") and page.evaluate("document.activeElement.id") == "tab-compare"
    page.keyboard.press("End")
    assert page.is_visible("#judge")
    page.keyboard.press("Home")
    page.keyboard.press("/")
    assert page.evaluate("document.activeElement.id") == "question"
    page.keyboard.type("hello")
    page.keyboard.press("Enter")
    page.wait_for_selector("#messages .assistant .message-foot button")
    wait_until(page, "document.querySelector('#announcer').textContent.includes('A cat answers: hello')")
    for _ in range(40):
        if page.evaluate("document.activeElement.textContent") == "Retry":
            break
        page.keyboard.press("Shift+Tab")
    outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert outline == "solid", "the focus is visible"
    page.keyboard.press("Enter")
    page.wait_for_selector(".versions")
    page.focus("#open-shortcuts")
    page.keyboard.press("?")
    page.wait_for_selector("dialog")
    page.keyboard.press("Escape")
    page.wait_for_selector("dialog", state="detached")
    assert page.evaluate("document.activeElement.id") == "open-shortcuts", "the focus returns"
    page.keyboard.press("Alt+2")
    assert page.is_visible("#compare")
    page.keyboard.press("Alt+n")
    assert page.is_visible("#chat") and page.evaluate("document.activeElement.id") == "question"


def test_panels_close_by_escape_and_return_the_focus(open_page):
    page = open_page()
    page.focus("#toggle-settings")
    page.keyboard.press("Enter")
    assert page.get_attribute("#toggle-settings", "aria-expanded") == "true"
    assert page.evaluate("document.activeElement.closest('#settings') !== null")
    page.keyboard.press("Escape")
    assert page.evaluate("document.activeElement.id") == "toggle-settings"
    assert page.get_attribute("#toggle-settings", "aria-expanded") == "false"


def test_every_control_has_a_name(open_page, fake):
    page = open_page()
    fake.script.replies["all"] = "REASON" + LONG
    ask(page, "all")
    ask(page, "more")
    page.click("#toggle-settings")
    assert page.evaluate(NAMES) == []
    page.click("#tab-compare")
    page.fill("#compare-prompt", "hello")
    page.press("#compare-prompt", "Enter")
    page.wait_for_selector("#compare-tools", state="visible")
    page.check("input[value=probabilities]")
    assert page.evaluate(NAMES) == []
    assert page.locator("h1").count() == 1 and page.locator("main").count() == 1
    roles = page.evaluate("[...document.querySelectorAll('[role=tab]')].map((tab) => tab.tabIndex)")
    assert sorted(roles) == [-1, -1, 0]


def test_only_finished_replies_are_announced(open_page, fake):
    page = open_page()
    fake.script.delay = 0.05
    page.evaluate("""() => { window.said = []; new MutationObserver(() => {
        const text = document.getElementById("announcer").textContent; if (text) window.said.push(text);
    }).observe(document.getElementById("announcer"), {childList: true, characterData: true, subtree: true}); }""")
    page.fill("#question", "one two three four five")
    page.press("#question", "Enter")
    page.wait_for_selector(".streaming")
    assert page.get_attribute(".streaming", "aria-busy") == "true"
    assert page.locator("#thread[aria-live], #thread [aria-live], #thread [role=log]").count() == 0
    page.wait_for_selector("#stop", state="hidden")
    wait_until(page, "window.said.length > 0")
    assert page.evaluate("window.said") == ["Reply: A cat answers: one two three four five"]


@pytest.mark.parametrize(("width", "height"), [(320, 568), (360, 740), (390, 844), (640, 400)])
def test_phone_has_no_overflow_and_large_targets(open_page, fake, width, height):
    page = open_page(viewport={"width": width, "height": height}, has_touch=True, is_mobile=True)
    fake.script.replies["long"] = "REASON" + LONG
    fake.script.models = ["base", "a-very-long-name-" + "of-an-adapter-" * 12]
    page.reload()
    page.wait_for_selector("#model option", state="attached")
    page.fill("#question", "long")
    page.click("#send")
    page.wait_for_selector(".message-foot button")
    page.wait_for_selector("#stop", state="hidden")
    assert page.evaluate(WIDE) == [0]
    assert page.evaluate(SMALL) == []
    for side in ("settings", "conversations"):
        page.click(f"#toggle-{side}")
        assert page.evaluate(WIDE) == [0]
        assert page.evaluate(SMALL) == []
        page.click(f"#close-{side}")
    page.click("#tab-compare")
    page.fill("#compare-prompt", "long")
    page.click("#compare-run")
    page.wait_for_selector("#compare-tools", state="visible")
    for view in ("probabilities", "text", "differences"):
        page.check(f"input[value={view}]")
        assert page.evaluate(WIDE) == [0], view
    assert page.evaluate(SMALL) == []


@pytest.mark.parametrize(
    "options", [{"color_scheme": "dark"}, {"reduced_motion": "reduce"}, {"forced_colors": "active"}]
)
def test_preferences_of_the_system_are_followed(open_page, fake, options):
    page = open_page(**options)
    dark = options.get("color_scheme") == "dark"
    if "forced_colors" not in options:
        assert page.evaluate("getComputedStyle(document.body).backgroundColor") == (
            "rgb(16, 20, 24)" if dark else "rgb(244, 246, 248)"
        )
    fake.script.delay = 0.1
    page.fill("#question", "one two three four")
    page.press("#question", "Enter")
    page.wait_for_selector(".streaming .content > *")
    name = page.evaluate(
        "getComputedStyle(document.querySelector('.streaming .content > :last-child'), '::after').animationName"
    )
    assert (name == "none") == ("reduced_motion" in options)
