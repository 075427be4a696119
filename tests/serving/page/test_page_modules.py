"""Modules of the page, run in a browser as functions: event stream, Markdown, differences, export."""

import json
import random

import pytest
from page_steps import ask

from lora_chat.data.parsing.messages import parse_dialogue

MARKDOWN = """# Title #

Text with **bold**, *soft*, ***both***, `a*b`, ~~gone~~ and snake_case_name.
Second line
1. one
   - inner
     continued
2. two

   paragraph
- [ ] task
\t- inner by a tab
- [x] done

> quote
> - list
>> deep

| a | b \\| c |
|:-:|--:|
| 1 | 2 |

```py
if x:
    pass
all:
\tmake it
```
***
~~~
open fence *text*
"""


def run(page, module: str, code: str, value: object):
    """Run JavaScript with a module of the page as `m` and a value as `v`."""
    return page.evaluate(f"async (v) => {{ const m = await import('/static/{module}'); {code} }}", value)


def test_event_parser_copes_with_borders_anywhere(open_page):
    page = open_page()
    events = ['{"a": "ä€😀"}', "two\nlines", "", "[DONE]"]
    wire = "\ufeff: comment\r\nevent: x\r\n" + "\r\n".join(
        "".join(f"data: {line}\r\n" for line in event.split("\n")) for event in events
    )
    wire += "\rdata:last\n\n"
    pieces = [[wire[at : at + size] for at in range(0, len(wire), size)] for size in (1, 2, 3, 7, 1000)]
    code = "return v.map((pieces) => { const p = new m.EventParser(); return pieces.flatMap((one) => p.feed(one)); });"
    assert run(page, "event_stream.js", code, pieces) == [[*events, "last"]] * len(pieces)


def test_markdown_renders_the_common_forms(open_page):
    page = open_page()
    code = "const d = document.createElement('div'); d.append(m.renderMarkdown(v)); return d.innerHTML;"
    html = run(page, "markdown.js", code, MARKDOWN)
    for part in (
        '<h4 dir="auto">Title</h4>', "<strong>bold</strong>", "<em>soft</em>", "<em><strong>both</strong></em>",
        '<code dir="ltr">a*b</code>', "<del>gone</del>", "snake_case_name", "☐ task", "☑ done", "<hr>", "b | c",
        '<td class="align-right" dir="auto">2</td>', "if x:\n    pass", "all:\n\tmake it", "open fence *text*",
    ):  # fmt: skip
        assert part in html, part
    assert html.count("<blockquote") == 2
    assert html.count("<ol>") == 1 and html.count("<li") == 7


@pytest.mark.parametrize("seed", range(3))
def test_streamed_markdown_equals_whole_markdown(open_page, seed):
    page = open_page()
    draw = random.Random(seed)
    parts = [
        *MARKDOWN.split("\n"),
        "",
        "- ",
        "1. x",
        "2.",
        "```",
        "> q",
        "   - deep",
        "\t- tab",
        " \tx",
        "* * *",
        "| a |",
        "|--|",
        "|-",
        "x\r",
    ]
    texts = [MARKDOWN, *("\n".join(draw.choices(parts, k=draw.randrange(1, 25))) for _ in range(150))]
    code = """return v.map((text) => {
        const whole = document.createElement("div"); whole.append(m.renderMarkdown(text));
        const parts = document.createElement("div"); const view = new m.MarkdownView(parts);
        for (let at = 0; at < text.length; at += 1 + (at % 5)) { view.text = text.slice(0, at); view.draw(); }
        view.finish(text);
        return whole.innerHTML === parts.innerHTML ? null : text;
    }).filter((text) => text !== null);"""
    assert run(page, "markdown.js", code, texts) == []


def test_differences_rebuild_both_texts(open_page):
    page = open_page()
    draw = random.Random(0)
    words = ["a", "b", "c", "the", ",", ".", "\n", "käse", "😀", "", "x y"]
    pairs = [[" ".join(draw.choices(words, k=draw.randrange(12))) for _ in range(2)] for _ in range(300)]
    pairs += [["same text", "same text"], ["", ""], ["w " * 6000, "v " * 6000], ["a." * 300_000, "b," * 300_000]]
    results = run(page, "word_difference.js", "return v.map(([a, b]) => m.compareWords(a, b));", pairs)
    for (first, second), result in zip(pairs, results, strict=True):
        before = "".join(part["text"] for part in result["parts"] if part["kind"] != "added")
        after = "".join(part["text"] for part in result["parts"] if part["kind"] != "removed")
        assert ("".join(before.split()), after) == ("".join(first.split()), second)
    assert results[300]["added"] == results[300]["removed"] == 0
    assert not results[302]["exact"] and not results[303]["exact"]
    shown = run(page, "word_difference.js", "return m.compareWords(...v);", ["one two three", "one four three"])
    assert [(part["kind"], part["text"]) for part in shown["parts"]] == [
        ("same", "one "), ("removed", "two "), ("added", "four "), ("same", "three"),
    ]  # fmt: skip


def test_exported_row_is_accepted_by_the_data_reader(open_page, fake, tmp_path, monkeypatch):
    page = open_page()
    fake.script.replies |= {"think": "REASON**done** <|im_end|> \U0001f600\u2028", "call": "CALL"}
    page.click("#toggle-settings")
    page.fill("#system", 'Be "short".\nAlways.')
    ask(page, "first\nline \ud83d")
    ask(page, "think")
    ask(page, "call")
    with page.expect_download() as download:
        page.click("#export-row")
    path = tmp_path / "row.jsonl"
    download.value.save_as(path)
    (line,) = path.read_text(encoding="utf-8").rstrip("\n").split("\n")
    row = json.loads(line)
    assert list(row) == ["messages"]
    dialogue = parse_dialogue(row)
    assert [message.role for message in dialogue.messages] == ["system", *["user", "assistant"] * 3]
    assert dialogue.messages[1].content == "first\nline \ufffd"
    assert dialogue.messages[4].reasoning == "I think about cats."
    assert dialogue.messages[6].tool_calls[0].name == "look"
    page.click("#new-conversation")
    ask(page, "second conversation")
    with page.expect_download() as download:
        page.click("#export-row")
    download.value.save_as(tmp_path / "second.jsonl")
    with page.expect_download() as download:
        page.click("#export-all")
    download.value.save_as(path)
    assert [parse_dialogue(json.loads(one)) for one in path.read_text(encoding="utf-8").rstrip("\n").split("\n")]

    from lora_chat.cli import main

    monkeypatch.chdir(tmp_path)
    recipe = tmp_path / "recipe.yaml"
    data = "data:\n  train: second.jsonl\n  validation_share: 0\n"
    recipe.write_text("base:\n  name: tiny-random\nquantization:\n  mode: none\n" + data, encoding="utf-8")
    assert main(["data", str(recipe)]) in (0, None)
