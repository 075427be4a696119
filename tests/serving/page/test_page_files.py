"""The files of the page are complete, are served with strict headers, and build nodes from text only."""

import re
from importlib.resources import files
from pathlib import Path

import pytest

pytest.importorskip("starlette")

from starlette.applications import Starlette
from starlette.testclient import TestClient

from lora_chat.data.parsing.messages import parse_dialogue
from lora_chat.serving.page_routes import PAGE_FILES, ROUTES

STATIC = Path(str(files("lora_chat.serving").joinpath("static")))
SCRIPTS = sorted(STATIC.glob("*.js"))
FORBIDDEN = re.compile(
    r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|createContextualFragment|DOMParser|srcdoc|\beval\b"
    r"|new Function|setHTML|parseHTML|javascript:|set(Timeout|Interval)\(\s*[\"'`]|setAttribute\(\s*[\"'`]on"
    r"|\.on(click|load|error|input|change|submit|key\w+)\s*=|document\.domain|createPolicy|XMLHttpRequest|importScripts"
)
ADDRESS = re.compile(r"https?://(?!www\.w3\.org/2000/svg)[a-z]")


@pytest.fixture(scope="module")
def client() -> TestClient:
    return TestClient(Starlette(routes=list(ROUTES)), base_url="http://127.0.0.1")


def test_table_names_every_file_of_the_folder():
    assert sorted(PAGE_FILES) == sorted(path.name for path in STATIC.iterdir() if path.is_file())


@pytest.mark.parametrize("name", PAGE_FILES)
def test_file_is_served_with_strict_headers(client, name):
    answer = client.get("/" if name == "index.html" else f"/static/{name}")
    assert answer.status_code == 200
    assert answer.content == (STATIC / name).read_bytes()
    assert int(answer.headers["content-length"]) == len(answer.content)
    kind = {"html": "text/html", "css": "text/css", "js": "text/javascript", "svg": "image/svg+xml"}
    assert answer.headers["content-type"].split(";")[0] == kind[name.split(".")[-1]]
    policy = dict(part.split(" ", 1) for part in answer.headers["content-security-policy"].split("; "))
    assert policy["default-src"] == "'none'"
    assert {policy[key] for key in ("script-src", "style-src", "connect-src", "img-src")} == {"'self'"}
    assert {policy[key] for key in ("base-uri", "form-action", "frame-ancestors")} == {"'none'"}
    assert policy["require-trusted-types-for"] == "'script'"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["referrer-policy"] == "no-referrer"
    assert answer.headers["cache-control"] == "no-cache"
    again = client.get(answer.url.path, headers={"if-none-match": answer.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    assert client.head(answer.url.path).headers["content-length"] == str(len(answer.content))


@pytest.mark.parametrize(
    "path",
    [
        "/static/", "/static/index.html", "/static/../page_routes.py", "/static/%2e%2e/page_routes.py", "/static/x.js",
        "/static/..%2fpage_routes.py", "/static//etc/passwd", "/static/main.js/", "/static/main.js%00", "/index.html",
        "/static/MAIN.JS", "/static/__init__.py", "/static/%5c..%5cpage_routes.py",
    ],
)  # fmt: skip
def test_other_paths_are_not_served(client, path):
    assert client.get(path, follow_redirects=False).status_code in (307, 404)
    assert client.get(path).status_code == 404 or client.get(path).content == (STATIC / "main.js").read_bytes()


def test_page_is_read_only(client):
    assert {client.request(method, "/").status_code for method in ("POST", "PUT", "DELETE", "PATCH")} == {405}


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_script_builds_no_markup_and_names_no_address(path):
    text = path.read_text(encoding="utf-8")
    assert not FORBIDDEN.search(text), FORBIDDEN.search(text)
    assert not ADDRESS.search(text), ADDRESS.search(text)


@pytest.mark.parametrize(
    "line",
    ["a.innerHTML = b", "eval('1')", "a.onclick = f", 'setTimeout("f()", 1)', "a.setAttribute('onload', f)",
     "document.write(x)", "new Function('x')", "a.outerHTML", 'href = "javascript:x"'],
)  # fmt: skip
def test_forbidden_code_would_be_noticed(line):
    assert FORBIDDEN.search(line)


def test_markup_has_no_inline_code_style_or_address():
    html = (STATIC / "index.html").read_text(encoding="utf-8")
    assert not re.search(r"\son[a-z]+\s*=|\sstyle\s*=|<style|javascript:|<base|<iframe|<object|<embed", html)
    assert not ADDRESS.search(html)
    assert re.findall(r"<script[^>]*>[^<]*", html) == ['<script type="module" src="static/main.js">']
    ids = re.findall(r'\sid="([^"]+)"', html)
    assert len(ids) == len(set(ids))
    for reference in re.findall(r'\s(?:for|aria-controls|aria-labelledby|aria-describedby)="([^"]+)"', html):
        assert reference in ids


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_imports_and_ids_of_a_script_exist(path):
    text = path.read_text(encoding="utf-8")
    for names, module in re.findall(r'import \{([^}]*)\} from "\./([\w.]+)"', text):
        exported = (STATIC / module).read_text(encoding="utf-8")
        for name in (part.strip() for part in names.split(",") if part.strip()):
            assert re.search(rf"export (async )?(function\*?|const|class) {name}\b", exported), (name, module)
            assert len(re.findall(rf"\b{name}\b", text)) > 1, f"{name} is not used"
    assert set(re.findall(r'from "([^"]+)"', text)) <= {f"./{name}" for name in PAGE_FILES}
    html = (STATIC / "index.html").read_text(encoding="utf-8")
    for name in re.findall(r'byId\("([^"]+)"\)', text):
        assert f'id="{name}"' in html


def test_styles_load_nothing():
    for path in STATIC.glob("*.css"):
        assert not re.search(r"url\(|@import|expression", path.read_text(encoding="utf-8")), path.name


ROWS = [
    {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]},
    {
        "messages": [
            {"role": "system", "content": "s"},
            {"role": "user", "content": "a <|im_end|>\n"},
            {"role": "assistant", "content": "b", "reasoning_content": "think"},
            {"role": "user", "content": "c"},
            {
                "role": "assistant",
                "content": "",
                "tool_calls": [{"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}}],
            },
        ]
    },
]
"""Rows in the form in which the page exports them; `test_page_export.py` compares the page with it."""


@pytest.mark.parametrize("row", ROWS, ids=["plain", "full"])
def test_exported_form_is_training_data(row):
    dialogue = parse_dialogue(row)
    assert [message.role for message in dialogue.messages] == [message["role"] for message in row["messages"]]
    assert [message.content for message in dialogue.messages] == [message["content"] for message in row["messages"]]
