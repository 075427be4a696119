"""A server with scripted replies, and a page that must stay free of errors."""

from types import SimpleNamespace

import pytest

WATCH = """
window.violations = [];
document.addEventListener("securitypolicyviolation", (event) => {
  window.violations.push(event.violatedDirective + " " + event.blockedURI);
});
"""


@pytest.fixture
def fake():
    """Return a running server with scripted replies."""
    pytest.importorskip("uvicorn")
    from page_server import RunningServer, ScriptedServer

    scripted = ScriptedServer()
    running = RunningServer(scripted.build_app())
    yield SimpleNamespace(script=scripted, running=running, address=running.address)
    running.close()


@pytest.fixture
def open_page(browser, fake):
    """Return a function that opens the page; at the end no page has had an error or broken its policy."""
    contexts, problems = [], []

    def open_one(*, expect_errors: bool = False, **options):
        options.setdefault("viewport", {"width": 1280, "height": 800})
        context = browser.new_context(**options)
        contexts.append(context)
        context.add_init_script(WATCH)
        page = context.new_page()
        page.set_default_timeout(10_000)
        page.on("pageerror", lambda error: problems.append(f"{error}"))
        page.on("dialog", lambda dialog: problems.append(f"a dialog opened: {dialog.message}"))
        if not expect_errors:
            page.on("console", lambda entry: problems.append(entry.text) if entry.type == "error" else None)
        page.goto(fake.address)
        page.wait_for_selector("#model option", state="attached")
        return page

    yield open_one
    for context in contexts:
        for page in context.pages:
            problems += page.evaluate("window.violations || []")
        context.close()
    assert problems == []
