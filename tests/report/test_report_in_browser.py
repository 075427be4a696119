"""The report in headless Chromium: the script runs, the policy is kept, and hostile text neither acts nor loads.

The test needs a Chromium (`chromium`, `google-chrome`, or the path in LORA_CHAT_CHROMIUM).
"""

import http.server
import json
import os
import re
import shutil
import subprocess
import threading

import pytest
from report_runs import make_comparison, write_run

from lora_chat.report.collect import collect_run
from lora_chat.report.document import encode_json
from lora_chat.report.page import build_run_page
from lora_chat.report.run_comparison import build_comparison_page
from lora_chat.runs.run_folder import RunFolder

CHROMIUM = os.environ.get("LORA_CHAT_CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")

pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium"),
    pytest.mark.skipif(not os.environ.get("LORA_CHAT_ALL_BASES"), reason="on demand"),
]


@pytest.fixture
def address():
    """Return the address of a server, and the list of requests that reach it."""
    requests = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            requests.append(self.path)
            self.send_response(200)
            self.end_headers()

        def log_message(self, *words):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", requests
    server.shutdown()


def open_page(path, profile, *options):
    """Return the document after its scripts have run, and the messages of the console."""
    command = [CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu", f"--user-data-dir={profile}", *options]
    command += ["--virtual-time-budget=3000", "--enable-logging=stderr", "--dump-dom", path.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    return done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line]


def attacks(address):
    return [
        f"</script><script>document.title='owned';fetch('{address}/script')</script>",
        f"<img src={address}/img onerror=\"document.title='owned'\">",
        f"\"><svg onload=document.title='owned'><image href={address}/svg />",
        f"<style>@import '{address}/style';*{{display:none}}</style>",
        f"<iframe src={address}/frame></iframe><link rel=stylesheet href={address}/link>",
        "<!--<script>",
        "safe\u202egnp.exe\u2066\x00\x1b[31m",
        "__proto__",
        "constructor",
        "x" * 1_000_000,
    ]


def write_hostile_run(folder, address):
    evil = attacks(address)
    comparison = make_comparison(len(evil))
    for item, text in zip(comparison["items"], evil, strict=True):
        item |= {"prompt": text, "reference": text, "base": text, "adapted": text}
        item["scores"] = {text[:300]: [0, 1], "exact_match": [0, 1], "__proto__": [0, 1]}
    comparison["verdict"] |= {"word": evil[0], "text": evil[1], "metric": evil[2]}
    comparison["figures"] |= {text[:300]: comparison["figures"]["chrf"] for text in evil}
    run = RunFolder(write_run(folder, comparison, name="a<b>&'c"))
    for path in (run.plan, run.versions, run.audit):
        path.write_text(json.dumps({**json.loads(path.read_text()), **{text[:300]: text for text in evil}}))
    run.recipe.write_text("".join(f"- '{text}'\n" for text in evil[:5]))
    return run


def test_script_runs_and_nothing_violates_the_policy(tmp_path):
    first, second = (RunFolder(write_run(tmp_path, name=name)) for name in ("first-1", "second-1"))
    for name, text in (
        ("run.html", build_run_page(collect_run(first))),
        ("runs.html", build_comparison_page([collect_run(first), collect_run(second)])),
    ):
        (tmp_path / name).write_text(text, encoding="utf-8")
        dom, console = open_page(tmp_path / name, tmp_path / "profile")
        assert console == []
        assert '<button type="button" id="theme" class="js">' in dom  # the script has shown it
    assert "14 of 14 prompts" in open_page(tmp_path / "run.html", tmp_path / "profile")[0]


def test_page_is_complete_without_javascript(tmp_path):
    page = tmp_path / "run.html"
    text = build_run_page(collect_run(RunFolder(write_run(tmp_path))))
    page.write_text(text.replace('"use strict";', '"use strict"; '), encoding="utf-8")  # its digest is another one
    dom, console = open_page(page, tmp_path / "profile")
    assert any("Content Security Policy" in line for line in console)
    assert '<button type="button" id="theme" class="js" hidden="">' in dom
    assert "How do I brew coffee number 11?" in dom


def test_hostile_text_neither_acts_nor_loads(tmp_path, address):
    url, requests = address
    run = write_hostile_run(tmp_path, url)
    for build in (build_run_page, lambda record: build_comparison_page([record, record])):
        (tmp_path / "page.html").write_text(build(collect_run(run)), encoding="utf-8")
        dom, console = open_page(tmp_path / "page.html", tmp_path / "profile")
        assert "owned" not in re.search("<title>(.*?)</title>", dom)[1]
        assert '<button type="button" id="theme" class="js">' in dom
        assert console == []
    assert requests == []


def test_the_policy_stops_a_script_that_slipped_through(tmp_path, address):
    url, requests = address
    text = build_run_page(collect_run(RunFolder(write_run(tmp_path))))
    planted = f"<script>document.title='owned'</script><img src='{url}/img' onerror=\"document.title='owned'\">"
    (tmp_path / "page.html").write_text(text.replace("</main>", f"{planted}</main>"), encoding="utf-8")
    dom, console = open_page(tmp_path / "page.html", tmp_path / "profile")
    assert "owned" not in re.search("<title>(.*?)</title>", dom)[1]
    assert any("Content Security Policy" in line for line in console)
    assert requests == []
    assert encode_json("</script>") == '"\\u003c/script\\u003e"'
