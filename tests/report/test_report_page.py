"""The report of a run: every section is there, and nothing of a stranger acts in a browser."""

import base64
import hashlib
import json
import re
import time
from html.parser import HTMLParser
from pathlib import Path

import pytest
from report_runs import make_comparison, make_labelled_comparison, write_run

from lora_chat.cli import main
from lora_chat.pipeline.report_runs import try_write_report
from lora_chat.report.collect import collect_run
from lora_chat.report.document import encode_json
from lora_chat.report.element import element, join
from lora_chat.report.page import build_run_page
from lora_chat.report.run_comparison import build_comparison_page
from lora_chat.runs.run_folder import RunFolder

OLD_RUN = Path("tests/fixtures/run-of-version-1/smoke-1")
VOID = {"meta", "input", "br", "hr", "col"}
SECTIONS = [
    *("metrics", "curves", "replies", "confusion", "general", "generations", "recital", "overlap", "data", "audit"),
    *("planned", "environment", "recipe"),
]
EVIL = [
    "</script><script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "\"' onmouseover=alert(1) x='",
    "safe\u202egnp.exe\u2066",
    "nul\x00bell\x07esc\x1b[31m",
    "<!--<script>",
    "]]>&lt;b&gt;\u2028\u2029",
    "javascript:alert(1)",
    "https://example.com/a.png",
]


class Page(HTMLParser):
    """The parsed page: open elements must match, and ids must be unique."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.stack, self.ids, self.tags, self.attributes, self.texts = [], [], [], [], []
        self.feed(text)
        self.close()
        assert self.stack == []
        assert len(self.ids) == len(set(self.ids))

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        self.ids += [value for name, value in attrs if name == "id"]
        if tag not in VOID:
            self.stack.append(tag)

    def handle_endtag(self, tag):
        assert self.stack
        assert self.stack.pop() == tag

    def handle_data(self, data):
        if not self.stack or self.stack[-1] not in ("script", "style"):
            self.texts.append(data)

    @property
    def text(self):
        return "".join(self.texts)


@pytest.fixture(scope="module")
def full_run(tmp_path_factory):
    return RunFolder(write_run(tmp_path_factory.mktemp("runs"), make_labelled_comparison()))


@pytest.fixture(scope="module")
def full_text(full_run):
    return build_run_page(collect_run(full_run))


def embedded(text):
    return json.loads(re.search(r'<script type="application/json" id="report-data">(.*?)</script>', text, re.S)[1])


def test_shows_every_section_of_a_new_run(full_text):
    page = Page(full_text)
    assert [value for tag, name, value in page.attributes if (tag, name) == ("section", "id")] == SECTIONS
    for shown in (
        *("Better", "Better at the task: exact match 25 % -> 41 %", "the test set", "needs about 340 items"),
        *("kept: step 100", "Step 100 was kept", "1.67 GB", "2.2 min", "-5%", "+9%"),
        *(
            "ticket 17",
            "fixed",
            "其他",
            "(other)",
            "87.5%",
            "data/test.jsonl:7",
            "capital of France",
            "arithmetic",
            "18 of 40",
        ),
        *("personal data", "redact", "37.5%", "training: {epochs: 2}", "2.13.0", "1.9"),
    ):
        assert shown in page.text, shown


def test_policy_allows_only_the_style_and_script_of_the_page(full_text):
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]*)"', full_text)[1]
    assert policy.startswith("default-src 'none'; ")
    assert "unsafe" not in policy
    for tag, directive in (("style", "style-src"), ("script", "script-src")):
        (source,) = re.findall(rf"<{tag}>(.*?)</{tag}>", full_text, re.S)
        digest = base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()
        assert f"{directive} 'sha256-{digest}'" in policy
    # The policy comes before everything that it governs.
    assert full_text.index("Content-Security-Policy") < min(full_text.index("<style>"), full_text.index("<script"))


def test_page_names_no_address_and_no_inline_handler_or_style(full_text):
    page = Page(full_text)
    assert not re.search(r"(https?:)?//[a-z]", re.sub(r"<script type=.*?</script>", "", full_text, flags=re.S))
    assert not [a for a in page.attributes if a[1].startswith("on") or a[1] in ("style", "src", "srcset", "action")]
    assert all(value.startswith("#") for _, name, value in page.attributes if name in ("href", "xlink:href"))
    anchors = {value[1:] for _, name, value in page.attributes if name == "href"}
    assert anchors <= set(page.ids)
    assert set(page.tags).isdisjoint(
        {"link", "iframe", "object", "embed", "base", "form", "img", "a-", "foreignobject"}
    )


@pytest.mark.parametrize("evil", EVIL)
def test_no_text_of_a_stranger_becomes_markup(tmp_path, evil):
    comparison = make_comparison(2)
    for item in comparison["items"]:
        item |= {"prompt": evil, "reference": evil, "base": evil, "adapted": evil}
        item["scores"] = {evil: [0, 1], "exact_match": [0, 1]}
    comparison["answers"][0] |= {"question": evil, "base": evil}
    comparison["verdict"] |= {"word": evil, "text": evil, "metric": evil}
    comparison["figures"][evil] = comparison["figures"]["chrf"]
    comparison["figures"]["chrf"]["verdict"] = evil
    comparison["set"] = evil
    comparison["confusion"] = make_labelled_comparison()["confusion"]
    comparison["confusion"]["labels"] = comparison["confusion"]["columns"][:3] = [evil, evil, evil]
    comparison["general"]["kinds"][0]["name"] = comparison["general"]["answers"][0]["base"] = evil
    comparison["general"] |= {"word": evil, "text": evil, "set_name": evil, "notes": [evil]}
    comparison["recital"]["findings"][0]["path"] = comparison["overlap"]["examples"][0]["location"] = evil
    run = RunFolder(write_run(tmp_path, comparison))
    plain = len(Page(build_run_page(collect_run(RunFolder(write_run(tmp_path, name="plain-1"))))).tags)
    for path in (run.plan, run.versions, run.statistics, run.audit, run.estimate):
        value = json.loads(path.read_text())
        value = {
            **value,
            evil: {evil: evil},
            "name": evil,
            "device": {"name": evil},
            "notes": [evil],
            "counts": {evil: 1},
        }
        path.write_text(json.dumps(value))
    run.recipe.write_text(f"base: {{name: '{evil}'}}", encoding="utf-8")
    for text in (build_run_page(collect_run(run)), build_comparison_page([collect_run(run), collect_run(run)])):
        page = Page(text)
        assert page.tags.count("script") == 2
        assert page.tags.count("style") == 1
        assert "img" not in page.tags
        assert not [name for _, name, _ in page.attributes if name.startswith("on")]
        assert not re.search("[\x00-\x08\x0b-\x1f\u202a-\u202e\u2066-\u2069\u2028\u2029]", text)
        assert embedded(text)
    assert plain > 200


def test_every_child_and_attribute_is_escaped():
    assert (
        element("p", "<b>&\"'", title='"><i>').html == '<p title="&quot;&gt;&lt;i&gt;">&lt;b&gt;&amp;&quot;&#x27;</p>'
    )
    assert join("a\u202eb", 1, None, ["<", element("br")]).html == "a\\u202eb1&lt;<br>"
    assert encode_json(["</script>\u2028&", float("nan")]) == '["\\u003c/script\\u003e\\\\u2028\\u0026",null]'
    with pytest.raises(ValueError, match="not a name"):
        element("p", **{"a onload": "x"})


def test_old_runs_are_shown_without_verdict():
    text = Page(build_run_page(collect_run(RunFolder(OLD_RUN)))).text
    assert "No verdict" in text
    assert "Validation loss 5.538" in text
    assert "Which day comes after Monday?" in text
    assert "lora-chat eval RUN" in text


@pytest.mark.parametrize(
    ("name", "content"),
    [
        *((name, "{ broken") for name in ("plan.json", "comparison.json", "result.json", "data.json", "audit.json")),
        ("comparison.json", "[1, 2]"),
        ("comparison.json", "[" * 100_000),
        (
            "comparison.json",
            '{"figures": {"x": {"base": 1e999, "adapted": NaN}}, "items": [3, {"scores": 4}], "set": 7}',
        ),
        ("comparison.json", '{"verdict": 3, "general": [[]], "recital": {"replies": -1}, "overlap": 3}'),
        ("comparison.json", '{"general": {"a": {"b": [1, {"c": 2}]}}, "overlap": {"items": "x"}, "recital": []}'),
        ("data.json", '{"total": [], "histogram": [[1], ["a", 2, 3]], "sources": {"a": 1}}'),
        ("result.json", '{"steps": -1, "seconds": 5, "forecast": {"planned": {"peak_bytes": 0}}}'),
        ("metrics.jsonl", '{"step": 1, "loss": 2.0}\n{"step": "a"}\n'),
        ("metrics.jsonl", '{"step": 1e300, "loss": 1e300}\n{"step": -1e300, "loss": -1e300}\n'),
        ("metrics.jsonl", '{"step": 1, "loss": NaN}\n{"step": 2, "loss": 0, "learning_rate": 0}\n'),
        ("recipe.yaml", "\udcff"),
    ],
)
def test_a_damaged_file_is_named_or_left_out(tmp_path, name, content):
    run = RunFolder(write_run(tmp_path))
    (run.path / name).write_bytes(content.encode("utf-8", "surrogateescape"))
    record = collect_run(run)
    text = Page(build_run_page(record)).text
    if record.damage:
        assert name in text
    assert Page(build_comparison_page([record, record])).text


def test_huge_texts_are_cut_and_quick(tmp_path):
    comparison = make_comparison(400)
    for item in comparison["items"]:
        item["base"] = "x" * 1_000_000 if item is comparison["items"][0] else item["base"] * 20
    record = collect_run(RunFolder(write_run(tmp_path, comparison, steps=6_000)))
    started = time.process_time()
    text = build_run_page(record)
    assert time.process_time() - started < 2
    assert len(text) < 3_000_000
    assert "characters left out" in text


def test_report_command_writes_one_page_or_a_comparison(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    first, second = write_run(tmp_path), write_run(tmp_path, name="second-1", learning_rate=0.0005, steps=300)
    assert main(["report", str(first), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["report"] == str(first / "report.html")
    assert Page((first / "report.html").read_text())
    assert main(["report", str(first), str(second)]) == 0
    text = Page((tmp_path / "comparison-report.html").read_text()).text
    assert "training.learning_rate" in text
    assert "training.epochs" not in text
    assert "All are equal." in text
    assert main(["report", str(tmp_path / "none")]) == 2
    assert main(["report", str(first), "--to", str(tmp_path)]) == 2


def test_a_failed_report_leaves_the_run_as_it_is(tmp_path, messages, monkeypatch):
    run = RunFolder(write_run(tmp_path))
    monkeypatch.setattr("lora_chat.pipeline.report_runs.build_run_page", lambda record: 1 / 0)
    try_write_report(run)
    assert "could not be written" in messages[0]
    assert not run.report.exists()


def luminance(colour):
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("theme", [0, 1, 2])
def test_text_has_enough_contrast_in_light_and_dark(full_text, theme):
    style = re.search("<style>(.*?)</style>", full_text, re.S)[1]
    blocks = [block for block in re.findall(r"\{([^{}]*)\}", style) if "--page:" in block]
    assert len(blocks) == 3
    colours = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", blocks[theme]))
    backgrounds = ("page", "card", "soft")
    pairs = [(text, back) for text in ("text", "muted", "accent") for back in backgrounds]
    pairs += [(tone, f"{tone}-soft") for tone in ("good", "bad", "warn")] + [
        ("text", "bad-soft"),
        ("text", "warn-soft"),
    ]
    pairs += [(name, "card") for name in colours if name.startswith("run-") or name in ("good", "validation", "rate")]
    for text, back in pairs:
        bright, dark = sorted((luminance(colours[text]), luminance(colours[back])), reverse=True)
        assert (bright + 0.05) / (dark + 0.05) >= 4.5, (text, back)
