"""The in-toto statement of a parcel: readable for other tools, always the same bytes, and checked by a receiver."""

import base64
import hashlib
import json

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from forging import facts_of_version_5, make_members
from google.protobuf import json_format
from in_toto_attestation.v1 import statement_pb2
from in_toto_attestation.v1.statement import Statement

from lora_chat.cli import main
from lora_chat.errors import IntegrityError, UsageError
from lora_chat.sharing.container import RECEIPT, REQUIRED_MEMBERS
from lora_chat.sharing.parcel import open_parcel
from lora_chat.sharing.statement import check_statement, encode_statement, write_statement


@pytest.fixture
def parcel(write):
    return open_parcel(write(make_members(**facts_of_version_5()), "renamed.lorachat"))


def test_the_package_of_in_toto_reads_it(parcel):
    raw = encode_statement(parcel)
    assert raw == encode_statement(open_parcel(parcel.path))
    message = json_format.Parse(raw, statement_pb2.Statement())
    statement = Statement.copy_from_pb(message)
    statement.validate()
    digests = {subject.name: subject.digest["sha256"] for subject in message.subject}
    assert digests.pop("kiln-1.lorachat") == hashlib.sha256(parcel.path.read_bytes()).hexdigest()
    assert digests == {name: hashlib.sha256(parcel.members[name]).hexdigest() for name in REQUIRED_MEMBERS}
    receipt = json_format.MessageToDict(message)["predicate"]
    assert receipt == json.loads(parcel.members[RECEIPT])


def test_commands_write_and_compare_it(parcel, capsys, tmp_path):
    file = tmp_path / "kiln.intoto.json"
    assert main(["verify", str(parcel.path), "--write-statement", str(file)]) == 0
    assert file.read_bytes() == encode_statement(parcel)
    capsys.readouterr()
    assert main(["verify", str(parcel.path), "--statement", str(file)]) == 0
    assert "the in-toto statement of this parcel, 5 subjects" in capsys.readouterr().out
    file.write_text(file.read_text().replace('"steps": 3', '"steps": 4'))
    assert main(["verify", str(parcel.path), "--statement", str(file)]) == 7
    assert "another 'predicate' than this parcel" in capsys.readouterr().out


def test_another_format_of_the_same_json_is_accepted(parcel, tmp_path):
    file = tmp_path / "s.json"
    file.write_text(json.dumps(json.loads(encode_statement(parcel))))
    assert "5 subjects" in check_statement(parcel, file)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda s: s["subject"].pop(), "another 'subject'"),
        (lambda s: s["subject"][0]["digest"].update(sha256="0" * 64), "another 'subject'"),
        (lambda s: s["predicate"]["proof"].update(accepted=0), "another 'predicate'"),
        (lambda s: s.update(predicateType="https://slsa.dev/provenance/v1"), "another 'predicateType'"),
        (lambda s: s.update(extra=None), "another 'extra'"),
        (lambda s: s.update(payloadType="application/vnd.in-toto+json"), "signed envelope"),
    ],
)
def test_refuses_any_other_statement(parcel, tmp_path, change, match):
    statement = json.loads(encode_statement(parcel))
    change(statement)
    (tmp_path / "s.json").write_text(json.dumps(statement))
    with pytest.raises(IntegrityError, match=match):
        check_statement(parcel, tmp_path / "s.json")


@pytest.mark.parametrize("text", ["", "[]", '{"a": 1, "a": 1}', "{" * 9000, "\0" * 3_000_000])
def test_refuses_files_that_are_no_statement(parcel, tmp_path, text):
    (tmp_path / "s.json").write_text(text)
    with pytest.raises(IntegrityError):
        check_statement(parcel, tmp_path / "s.json")


def test_never_replaces_another_file(parcel, tmp_path):
    with pytest.raises(UsageError, match="no statement"):
        check_statement(parcel, tmp_path / "s.json")
    with pytest.raises(UsageError, match="not a folder"):
        write_statement(parcel, tmp_path / "no" / "s.json")
    write_statement(parcel, tmp_path / "s.json")
    write_statement(parcel, tmp_path / "s.json")
    (tmp_path / "s.json").write_text("mine")
    with pytest.raises(UsageError, match="exists already"):
        write_statement(parcel, tmp_path / "s.json")


def test_the_signature_of_a_parcel_is_a_signed_statement_about_the_same_files(write, tmp_path):
    key = tmp_path / "key.pem"
    form = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    key.write_bytes(ec.generate_private_key(ec.SECP256R1()).private_bytes(*form))
    parcel = open_parcel(write(make_members(key=key, **facts_of_version_5())))
    envelope = json.loads(parcel.members["model.sig"])["dsseEnvelope"]
    signed = json.loads(base64.b64decode(envelope["payload"]))
    resources = {item["name"]: item["digest"] for item in signed["predicate"]["resources"]}
    subjects = {item["name"]: item["digest"]["sha256"] for item in json.loads(encode_statement(parcel))["subject"]}
    assert signed["_type"] == "https://in-toto.io/Statement/v1"
    assert resources == {name: subjects[name] for name in REQUIRED_MEMBERS}
