"""A browser for the tests of the page."""

import os
import shutil

import pytest

CHROMIUM = os.environ.get("LORA_CHAT_CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
ON_DEMAND = "on demand: LORA_CHAT_ALL_BASES=1"


@pytest.fixture(scope="session")
def browser():
    """Return a headless Chromium, if there is one and the tests in a browser were asked for."""
    if not os.environ.get("LORA_CHAT_ALL_BASES"):
        pytest.skip(ON_DEMAND)
    playwright = pytest.importorskip("playwright.sync_api")
    pytest.importorskip("uvicorn")
    if CHROMIUM is None:
        pytest.skip("needs Chromium")
    with playwright.sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()
