"""Steps that tests of the page share."""

import time


def wait_until(page, condition: str, seconds: float = 10) -> None:
    """Wait until a JavaScript expression is true; Playwright's own wait would need `eval`, which the policy forbids."""
    end = time.monotonic() + seconds
    while not page.evaluate(f"Boolean({condition})"):
        assert time.monotonic() < end, condition
        page.wait_for_timeout(20)


def ask(page, text: str) -> None:
    """Send a message and wait until its reply is complete."""
    page.fill("#question", text)
    page.press("#question", "Enter")
    page.wait_for_selector("#stop", state="hidden")
    page.wait_for_selector("#messages > li:last-child .message-foot button, .error-card")


def read_messages(page) -> list[str]:
    """Return the texts of the messages on screen."""
    return page.eval_on_selector_all("#messages .content", "nodes => nodes.map((node) => node.innerText)")
