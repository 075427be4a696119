"""`verify` and `chat` handle odd keys and values of a receipt in bounded time, without a traceback."""

import time

import pytest
from forging import forge, raw_of

from lora_chat import cli
from lora_chat.sharing.container import RECEIPT

pytestmark = pytest.mark.slow


def _deep():
    value = 1
    for _ in range(95):
        value = [value]
    return value


VALUES = {
    "escape": "\x1b]0;x\x07\x9b31m",
    "direction": "\u202e\u2066x",
    "long": "x" * 100_000,
    "look-alike": "l\u043era-chat",
    "half a character": "\ud800",
    "key of control characters": {"\x1b[31m": "\x1b[31m"},
    "long key": {"k" * 10_000: 1},
    "many keys": {str(number): 1 for number in range(30_000)},
    "deep": _deep(),
    "minus zero": -0.0,
    "2^63": 2**63,
    "10^400": 10**400,
    "1e308": 1e308,
    "nothing": None,
}
PLACES = (
    *(("recipe", "x"), ("recipe", "data"), ("versions", "x"), ("base", "config", "x"), ("base", "generation", "x")),
    *(("base", "system"), ("base", "stops", 0), ("chat_template",), ("seed",), ("adapter", "alpha"), ("parameters",)),
    *(("training", "seconds"), ("proof", "mean_kl"), ("data", "sources", 0, "name"), ("data", "audit", "x"), ("name",)),
)


def ends_well(path, capsys):
    """Assert that both commands end with one of their exit codes, quickly and with a short printable message."""
    for command in ("verify", "chat"):
        started = time.process_time()
        assert cli.main([command, str(path)]) in ((0, 7) if command == "verify" else (7, 8))
        assert time.process_time() - started < 5
        output = "".join(capsys.readouterr())
        assert len(output) < 10_000
        assert all(character.isprintable() or character in "\n\t" for character in output)


@pytest.mark.parametrize("value", VALUES)
def test_odd_value_gives_one_message(members, write, cache_home, capsys, value):
    for place in PLACES:

        def change(receipt, place=place):
            inner = receipt
            for key in place[:-1]:
                inner[key] = inner[key] or {}
                inner = inner[key]
            inner[place[-1]] = VALUES[value]

        ends_well(write(forge(members, change)), capsys)


@pytest.mark.parametrize("key", ["\x1b[31m", "\u202e", "x" * 300, "l\u043era-chat", "", "__proto__", "\ud800"])
def test_odd_key_gives_one_message(members, write, cache_home, capsys, key):
    for place in ("recipe", "versions", "training", None):
        path = write(forge(members, lambda receipt, at=place: (receipt[at] if at else receipt).update({key: "1"})))
        ends_well(path, capsys)


@pytest.mark.parametrize("text", ["1e999", "-0.0", "NaN", "9" * 5000, '0,\n "seed": 0', "0.0", "0e0", "00", "true"])
def test_rejects_odd_numbers(members, write, cache_home, capsys, text):
    raw = members[RECEIPT].replace(b'"seed": 0', b'"seed": ' + text.encode())
    assert raw != members[RECEIPT]
    path = write(raw_of({**members, RECEIPT: raw}))
    assert cli.main(["verify", str(path)]) == 7
    ends_well(path, capsys)


@pytest.mark.parametrize(
    "raw", [b"[" * 500_000, b"{" + b",".join(b'"%d":1' % n for n in range(80_000)) + b"}", b"\xff"]
)
def test_rejects_an_invalid_receipt(members, write, cache_home, capsys, raw):
    path = write(raw_of({**members, RECEIPT: raw}))
    assert cli.main(["verify", str(path)]) == 7
    ends_well(path, capsys)
