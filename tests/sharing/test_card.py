"""The card is plain text: no untrusted name becomes a link, a tag, a table row or a setting of the hub."""

import hashlib
import json
import re

import pytest
import yaml
from forging import facts
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from lora_chat.config.plan import make_plan
from lora_chat.config.recipe import AdapterSection, BaseSection, Recipe
from lora_chat.evaluation.intervals import wilson_interval
from lora_chat.export.formats import EXPORT_FORMATS
from lora_chat.models.adapter_config import LoraSettings
from lora_chat.models.identity import Identity
from lora_chat.sharing.compatibility import report_portability
from lora_chat.sharing.model_card import format_parcel_card
from lora_chat.sharing.receipt import Receipt, public_base_name
from lora_chat.sharing.run_card import format_run_card
from lora_chat.system.hardware import Hardware


def settings_of(**fields):
    return LoraSettings.from_section(AdapterSection(**fields))


SETTINGS = settings_of()
NASTY = [
    "x\n---\nlicense: mit\n---\n",
    "| a | b |\n|---|---|",
    "[click](https://evil.example)",
    "![x](https://evil.example/x.png)",
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "https://evil.example www.evil.example",
    "```\n# heading\n```",
    "`` ` `` ``` x",
    "*b* _i_ ~~s~~ @someone #1 &lt; $x$",
    "\u202egnp.exe\x1b[31m",
    "a | b",
    "a\\|b\\",
    "&#60;script&#62;alert(1)&#60;/script&#62; &#x3c;b&#x3e; &lt;i&gt; &colon;&sol;",
    "<https://evil.example> <mailto:a@evil.example> a@evil.example ftp://evil.example",
    "[a]: https://evil.example\n[a]",
    "[^1] [^1]: x",
    "<!-- x --> <![CDATA[x]]> <?php x ?> <!DOCTYPE x>",
    "</code></pre></td></table><h1>Official</h1>",
    "~~~\n<b>\n~~~",
    "` | `` | ``` <b>",
    "    indented\n\ttab",
    "# x\n=====\n- [ ] task\n> quote\n1. one\n***",
    ":smile: @all #12 GH-1 5e1c2a7b",
    "$$\\href{javascript:alert(1)}{x}$$ \\(x\\)",
    "a\r\n\x0b\x0c\x85\u2028\u2029---\nb: c",
    "...\n---\n!!python/object:os.system x",
    "${{ secrets.X }} {{ x }} {% x %} <%= x %>",
    "\u200bx\ufeff\u2066y\U000e0041",
]
ALLOWED = {"license", "tags", "library_name", "pipeline_tag", "base_model", "base_model_relation", "model-index"}


def check_harmless(card, benign):
    """Assert that a card has the structure of a card with plain names, so that no name acts as markup."""
    head, front, body = card.split("---\n", 2)
    assert head == ""
    assert yaml.safe_load(front).keys() <= ALLOWED
    tokens = MarkdownIt("gfm-like", {"linkify": False, "html": True}).parse(body)
    kinds = {inner.type for token in tokens for inner in [token, *(token.children or [])]}
    assert not kinds & {"html_block", "html_inline", "link_open", "image", "s_open", "em_open", "strong_open"}
    plain = "\n".join(line for token in tokens if token.type == "inline" for line in [token.content])
    bare = re.sub(r"(`+).*?\1", "", plain)
    assert not re.search(r"(?<!\\)@|https?://|www\.", bare)
    assert all(line.isprintable() for line in card.split("\n"))
    assert [token.type for token in tokens] == structure(benign)
    assert pipes(card) == pipes(benign)


def structure(card):
    return [t.type for t in MarkdownIt("gfm-like", {"linkify": False, "html": True}).parse(card.split("---\n", 2)[2])]


def pipes(card):
    """Count the cell separators of each table row outside of fences."""
    outside = re.sub(r"(?ms)^(`{3,})$.*?^\1$", "", card)
    return [len(re.findall(r"(?<!\\)\|", line)) for line in outside.split("\n") if line.startswith("|")]


def receipt_with(text):
    """Return a receipt with untrusted text in every field of the card, also where no valid receipt has it."""
    fields = facts()
    fields["base"]["system"] = text
    fields["data"]["sources"][0]["name"] = text[:200]
    receipt = Receipt.model_validate_json(json.dumps(fields))
    return receipt.model_copy(
        update={
            "data": receipt.data.model_copy(update={"audit": {text[:200]: 3}}),
            "versions": {"lora-chat": text[:200], text[:200]: "1"},
            "proof": receipt.proof.model_copy(update={"reader": text[:200]}),
        }
    )


@pytest.mark.parametrize("text", NASTY)
def test_escapes_hostile_names(text):
    used = report_portability(SETTINGS, "4bit", "llama")
    check_harmless(format_parcel_card(receipt_with(text), used), format_parcel_card(receipt_with("x"), used))


@given(st.text(st.sampled_from("|`-\n#[](){}<>!*_~\\@:/.&ab \u202e\x00é"), max_size=60))
def test_escapes_any_text(text):
    used = report_portability(SETTINGS, "none", "gpt2")
    check_harmless(format_parcel_card(receipt_with(text), used), format_parcel_card(receipt_with("x"), used))


@pytest.mark.parametrize("name", [*NASTY, "/home/anna/models/my base", "C:\\Users\\anna\\base", "friend/tiny"])
def test_escapes_names_in_the_card_of_a_run(name):
    card = card_of(name)
    check_harmless(card, card_of("x"))
    assert "anna" not in card
    assert ("base_model" in card) == (name == "friend/tiny")


def card_of(name):
    recipe = Recipe.model_validate({"base": BaseSection(name=name), "data": {"train": "x"}, "output": {"name": "k-1"}})
    plan = make_plan(recipe, Hardware("cpu", "test", 0, False, 2))
    digest = "ab" * 32
    identity = Identity(base=name, revision=None, weights=digest, tokenizer=digest, chat_template=digest)
    return format_run_card(plan, identity, 3, {"validation_loss": {"base": 1.0, "adapted": 0.5}})


def digests(*cards):
    return [hashlib.sha256(card.encode()).hexdigest()[:16] for card in cards]


def test_the_card_of_version_1_never_changes():
    """`verify` generates the card again and compares it, so one changed word makes every existing parcel unreadable.

    Do not change these digests. Give the receipt another version instead, and keep the words of this one.
    """
    cards = []
    for settings, mode, architecture in [
        (SETTINGS, "4bit", "llama"),
        (SETTINGS, "8bit", "qwen3"),
        (SETTINGS, "none", "gpt2"),
        (settings_of(variant="dora"), "none", None),
        (settings_of(variant="rslora", rank=600), "4bit", "phi3"),
        (settings_of(rank=20), "none", "unheard_of"),
    ]:
        fields = facts(license="Apache-2.0" if mode == "none" else None, architecture=architecture)
        fields["precision"]["mode"] = mode
        fields["data"]["audit"] = {"personal_data": 3} if mode == "8bit" else {}
        fields["base"] |= {"base": "tiny-random", "revision": None, "system": None} if mode == "8bit" else {}
        if mode == "none":
            fields |= {"comparison": None}
            fields["data"]["sources"] = []
        receipt = Receipt.model_validate_json(json.dumps(fields))
        cards.append(format_parcel_card(receipt, report_portability(settings, mode, architecture)))
    cards += [
        format_parcel_card(receipt_with(text), report_portability(SETTINGS, "4bit", "llama")) for text in NASTY[:12]
    ]
    assert digests("".join(cards)) == ["13244f356a1033d8"]


def test_shows_figures_with_their_intervals():
    card = format_parcel_card(receipt_with("x"), report_portability(SETTINGS, "4bit", "llama"))
    assert "| right of 4 questions (95 % interval) | 0% (0% to 49%) | 75% (30% to 95%) |" in card
    assert wilson_interval(0.5, 10) == pytest.approx((0.2366, 0.7634), abs=1e-4)  # statsmodels 0.14, proportion_confint


def test_names_four_programs_and_the_license():
    receipt = Receipt.model_validate_json(json.dumps(facts(license="CC-BY-4.0")))
    card = format_parcel_card(receipt, report_portability(SETTINGS, "4bit", "llama"))
    assert yaml.safe_load(card.split("---\n")[1])["license"] == "cc-by-4.0"
    assert yaml.safe_load(card.split("---\n")[1])["base_model"] == "friend/tiny"
    for words in ("lora-chat verify kiln-1.lorachat", "PeftModel.from_pretrained", "llama-cli", "ollama create"):
        assert words in card
    dora = format_parcel_card(receipt, report_portability(settings_of(variant="dora"), "4bit", "llama"))
    assert "--to gguf --type f16" in dora and "--lora" not in dora.split("llama.cpp:")[1].split("Ollama:")[0]


@pytest.mark.parametrize(
    ("base", "name"),
    [
        ("friend/tiny", "friend/tiny"),
        ("smollm2-135m-instruct", "smollm2-135m-instruct"),
        ("/home/anna/my model", "my-model"),
        ("/", "base"),
        ("C:\\Users\\anna\\base", "base"),
        ("/x/" + "y" * 200, "y" * 96),
    ],
)
def test_names_a_base_without_its_folder(base, name):
    assert public_base_name(base) == name


def answers(settings, mode="none", architecture="llama"):
    portability = report_portability(settings_of(**settings), mode, architecture)
    return {p.program: p.answer for p in portability}


def test_portability_depends_on_rank_variant_precision_and_architecture():
    usual = {"PEFT": "yes", "vLLM": "yes", "llama.cpp": "yes", "Ollama": "merged", "MLX": "merged"}
    assert answers({}) == usual
    assert answers({}, "4bit") == {**usual, "vLLM": "near", "llama.cpp": "near"}
    assert answers({"variant": "dora"}) == {**usual, "vLLM": "merged", "llama.cpp": "merged"}
    assert answers({"variant": "rslora"}) == usual
    assert answers({"rank": 513}) == {**usual, "vLLM": "merged"}
    assert answers({}, "none", "gpt2") == {**usual, "vLLM": "merged", "llama.cpp": "merged", "MLX": "no"}
    assert answers({}, "none", None) == {**usual, "MLX": "no"}
    whys = {p.program: p.why for p in report_portability(settings_of(rank=20), "none", "qwen3")}
    assert "--max-lora-rank 32" in whys["vLLM"]


def test_names_only_existing_export_formats():
    cards = [
        format_parcel_card(receipt_with("x"), report_portability(settings, mode, "llama"))
        for settings in (SETTINGS, settings_of(variant="dora"))
        for mode in ("none", "4bit")
    ]
    names = {name for card in cards for name in re.findall(r"export [^\n|]*?--to ([a-z-]+)", card)}
    assert {"gguf", "gguf-adapter", "ollama"} <= names <= EXPORT_FORMATS.keys()
