"""Forged signatures: other keys, other parcels, other spellings."""

import base64
import json
import os
import sys
from pathlib import Path

import pytest

from lora_chat.errors import IntegrityError, UsageError
from lora_chat.sharing.container import SIGNATURE
from lora_chat.sharing.parcel import open_parcel

sys.path.insert(0, str(Path(__file__).parents[1] / "sharing"))
from forging import forge, make_members, raw_of

pytest.importorskip("model_signing", reason="signatures need model-signing")
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa


def _pem(key):
    kind = serialization.PublicFormat.SubjectPublicKeyInfo
    return key.public_key().public_bytes(serialization.Encoding.PEM, kind)


KEYS = {
    "ours": ec.generate_private_key(ec.SECP256R1()),
    "another": ec.generate_private_key(ec.SECP256R1()),
    "another curve": ec.generate_private_key(ec.SECP384R1()),
    "a curve that is not signed with": ec.generate_private_key(ec.SECP256K1()),
    "RSA": rsa.generate_private_key(65537, 2048),
    "Ed25519": ed25519.Ed25519PrivateKey.generate(),
}


@pytest.fixture(scope="module")
def keys(tmp_path_factory):
    folder = tmp_path_factory.mktemp("keys")
    for name, key in KEYS.items():
        forms = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        (folder / name).write_bytes(key.private_bytes(*forms))
        (folder / f"{name}.pub").write_bytes(_pem(key))
    return folder


@pytest.fixture(scope="module")
def signed(keys):
    return make_members(key=keys / "ours")


@pytest.fixture(scope="module")
def others(keys):
    return {
        "ours, of another parcel": make_members(key=keys / "ours", name="kiln-2"),
        "another's, of the same": make_members(key=keys / "another"),
        "none": make_members(),
    }


@pytest.fixture
def opened(tmp_path):
    def opened(members, signer=None):
        path = tmp_path / "kiln-1.lorachat"
        path.write_bytes(raw_of(members))
        return open_parcel(path, signer)

    return opened


def test_unchanged_signed_parcel_opens(opened, signed, keys):
    assert opened(signed, keys / "ours.pub").receipt.signer == _pem(KEYS["ours"]).decode()


@pytest.mark.parametrize("other", [name for name in KEYS if name != "ours"])
def test_refuses_another_signer(opened, signed, keys, other):
    with pytest.raises((IntegrityError, UsageError)):
        opened(signed, keys / f"{other}.pub")
    forged = forge(signed, lambda receipt: receipt.update(signer=_pem(KEYS[other]).decode()))
    for signer in (None, keys / f"{other}.pub", keys / "ours.pub"):
        with pytest.raises((IntegrityError, UsageError)):
            opened(forged, signer)


@pytest.mark.parametrize("other", ["RSA", "Ed25519", "a curve that is not signed with"])
def test_refuses_other_signature_algorithms(keys, other):
    with pytest.raises(UsageError):
        make_members(key=keys / other)


def test_signatures_are_not_swapped_stripped_or_added(opened, signed, others, keys):
    ours = keys / "ours.pub"
    stripped = {name: body for name, body in signed.items() if name != SIGNATURE}
    cases = [
        {**signed, SIGNATURE: others["ours, of another parcel"][SIGNATURE]},
        {**signed, SIGNATURE: others["another's, of the same"][SIGNATURE]},
        {**others["none"], SIGNATURE: signed[SIGNATURE]},
        {**others["another's, of the same"], SIGNATURE: signed[SIGNATURE]},
        stripped,
        forge(signed, lambda receipt: receipt.update(name="kiln-2")),
        forge(signed, lambda receipt: receipt.update(signer=None)),
    ]
    for members in cases:
        for signer in (None, ours):
            with pytest.raises(IntegrityError):
                opened(members, signer)
    unsigned = forge(stripped, lambda receipt: receipt.update(signer=None))
    assert opened(unsigned).receipt.signer is None
    with pytest.raises(IntegrityError, match="not signed"):
        opened(unsigned, ours)


def _changed(change):
    def spelled(raw, other):
        bundle = json.loads(raw)
        change(bundle, json.loads(other))
        return json.dumps(bundle).encode()

    return spelled


def _statement(change):
    def changed(bundle, _):
        statement = json.loads(base64.b64decode(bundle["dsseEnvelope"]["payload"]))
        change(statement["predicate"]["resources"])
        bundle["dsseEnvelope"]["payload"] = base64.b64encode(json.dumps(statement).encode()).decode()

    return _changed(changed)


def _envelope(bundle):
    return bundle["dsseEnvelope"]


SPELLINGS = {
    "nothing": lambda raw, other: b"",
    "a list": lambda raw, other: b"[]",
    "a deep list": lambda raw, other: b"[" * 100_000,
    "a number": lambda raw, other: b"3",
    "no UTF-8": lambda raw, other: b"\xff" + raw,
    "a blank at its end": lambda raw, other: raw + b"\n",
    "an envelope twice": lambda raw, other: raw.rstrip()[:-1] + b',"dsseEnvelope":' + b"{}}",
    "the same envelope twice": lambda raw, other: (
        raw.rstrip()[:-1] + b',"dsseEnvelope":' + json.dumps(json.loads(raw)["dsseEnvelope"]).encode() + b"}"
    ),
    "a field more": _changed(lambda b, o: b.update(more=1)),
    "no envelope": _changed(lambda b, o: b.update(dsseEnvelope=None)),
    "no key": _changed(lambda b, o: b.pop("verificationMaterial")),
    "a certificate": _changed(lambda b, o: b.update(verificationMaterial={"certificate": {"rawBytes": "AAAA"}})),
    "another key's name": _changed(lambda b, o: b["verificationMaterial"]["publicKey"].update(hint="00" * 32)),
    "no signature": _changed(lambda b, o: _envelope(b).update(signatures=[])),
    "two signatures": _changed(lambda b, o: _envelope(b)["signatures"].append(_envelope(o)["signatures"][0])),
    "the other first": _changed(lambda b, o: _envelope(b)["signatures"].insert(0, _envelope(o)["signatures"][0])),
    "base64 with a line feed": _changed(lambda b, o: _envelope(b).update(payload="\n" + _envelope(b)["payload"])),
    "base64 of another alphabet": _changed(lambda b, o: _envelope(b).update(payload="-_" + _envelope(b)["payload"])),
    "another type": _changed(lambda b, o: _envelope(b).update(payloadType="text/plain")),
    "another statement": _changed(lambda b, o: _envelope(b).update(payload=_envelope(o)["payload"])),
    "fewer files": _statement(lambda files: files.pop()),
    "more files": _statement(lambda files: files.append(dict(files[0], name="more.txt"))),
    "a file twice": _statement(lambda files: files.append(files[0])),
}


@pytest.mark.parametrize("name", SPELLINGS)
def test_a_signature_has_one_spelling(opened, signed, others, name):
    other = others["another's, of the same"][SIGNATURE]
    with pytest.raises(IntegrityError, match="signature"):
        opened({**signed, SIGNATURE: SPELLINGS[name](signed[SIGNATURE], other)})


@pytest.mark.parametrize("text", [" ", "\x1b[31m", "-----BEGIN PUBLIC KEY-----\n%%%\n-----END PUBLIC KEY-----\n"])
def test_a_receipt_names_one_key_in_one_spelling(opened, signed, text):
    ours = _pem(KEYS["ours"]).decode()
    for named in (text, text + ours, ours + text + "\n", ours + _pem(KEYS["another"]).decode()):
        with pytest.raises(IntegrityError, match=r"signature|signer"):
            opened(forge(signed, lambda receipt, named=named: receipt.update(signer=named)))


def test_a_signer_is_one_public_key_in_a_file(opened, signed, keys, tmp_path):
    two, fifo = tmp_path / "two.pub", tmp_path / "fifo.pub"
    two.write_bytes(_pem(KEYS["ours"]) + _pem(KEYS["another"]))
    os.mkfifo(fifo)
    for wrong in (two, fifo, tmp_path, tmp_path / "none.pub", keys / "ours", Path("/dev/zero")):
        with pytest.raises(UsageError, match="--signer"):
            opened(signed, wrong)
