"""Signatures by an elliptic curve key, in the format of OpenSSF model signing; the only door to model_signing.

https://sigstore.github.io/model-transparency/ - the members are signed as the files of a folder, so that what was
pushed to a hub can be checked with that project's own command too.
"""

import base64
import hashlib
import io
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

from lora_chat.errors import IntegrityError, RecipeError, UnavailableError
from lora_chat.system.regular_files import open_regular_file
from lora_chat.system.strict_json import parse_strict_json

_MAX_KEY_BYTES = 1 << 16
_INSTALL_COMMAND = "pip install 'lora-chat[sign]'"


def read_public_key(private_key: Path) -> str:
    """The public half of a PEM file, as PEM. Raises RecipeError for a file that is no such key."""
    _require_model_signing()
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    try:
        key = serialization.load_pem_private_key(private_key.read_bytes(), None)
    except (OSError, ValueError, TypeError) as error:
        raise RecipeError(
            f"--key {private_key}: no private key that can be read ({error}). {_CREATE_KEY_HINT}"
        ) from error
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise RecipeError(f"--key {private_key}: only elliptic curve keys sign. {_CREATE_KEY_HINT}")
    return _encode_pem(key.public_key())


_CREATE_KEY_HINT = "Make one: openssl ecparam -name prime256v1 -genkey -noout -out key.pem"


def sign_members(members: Mapping[str, bytes], private_key: Path) -> bytes:
    """The signature of the members, a Sigstore bundle. Raises RecipeError for a key that cannot sign."""
    _require_model_signing()
    import model_signing

    with _members_folder(members) as (folder, signature):
        try:
            signer = model_signing.signing.Config().use_elliptic_key_signer(private_key=private_key)
            signer.sign(folder, signature)
        except ValueError as error:
            raise RecipeError(f"--key {private_key}: {error}. {_CREATE_KEY_HINT}") from error
        return signature.read_bytes()


def check_signature(
    members: Mapping[str, bytes], signature: bytes, public_key: str, *, required: bool
) -> tuple[str, bool | None]:
    """What a signature says, and whether it is good (None: the package is not there, and nobody insists).

    Raises IntegrityError for a signature that does not belong to these members and this key.
    """
    _check_canonical(signature)
    mark = f"by the key {_fingerprint(public_key)}"
    if not _is_installed():
        if required:
            _require_model_signing()
        return f"{mark}, not checked: {_INSTALL_COMMAND}", None
    import model_signing

    with _members_folder(members) as (folder, place):
        place.write_bytes(signature)
        key = place.with_name("key.pem")
        key.write_text(public_key)
        _check_key(public_key)
        try:
            with redirect_stdout(io.StringIO()):  # it prints what it thinks of old formats
                model_signing.verifying.Config().use_elliptic_key_verifier(public_key=key).set_hashing_config(
                    model_signing.hashing.Config()
                ).verify(folder, place)
        except Exception as error:  # a parser of strangers' JSON, protobuf and PEM: it fails in many ways
            reason = " ".join(str(error).split())[:160] or type(error).__name__
            raise IntegrityError(f"the signature does not hold ({reason})") from error
    return f"good, {mark}", True


def _check_canonical(signature: bytes) -> None:
    """Raise IntegrityError for a bundle that another parser could understand otherwise."""
    try:
        bundle = parse_strict_json(signature.decode("ascii"))
        envelope = bundle["dsseEnvelope"]
        (only,) = envelope["signatures"]
        texts = [envelope["payload"], only["sig"]]
        plain = all(base64.b64encode(base64.b64decode(text, validate=True)).decode() == text for text in texts)
    except (ValueError, TypeError, KeyError) as error:
        raise IntegrityError("the signature is no bundle of one signature, written once") from error
    if not plain or signature.strip() != signature:
        raise IntegrityError("the signature is not written as model signing writes it")


def _check_key(text: str) -> None:
    """Raise IntegrityError unless a receipt's key is one elliptic curve key in its only spelling."""
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    try:
        key = serialization.load_pem_public_key(text.encode())
        right = isinstance(key, ec.EllipticCurvePublicKey) and _encode_pem(key) == text
    except (ValueError, TypeError, UnsupportedAlgorithm):
        right = False
    if not right:
        raise IntegrityError("the receipt's signer is no elliptic curve public key in PEM")


def check_signer(stated_key: str, key_path: Path) -> None:
    """Raise IntegrityError unless the key that a receipt names is the one in a PEM file."""
    _require_model_signing()
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives import serialization

    try:
        with os.fdopen(open_regular_file(key_path, follow=True), "rb") as file:
            raw = file.read(_MAX_KEY_BYTES)
        if b"PRIVATE KEY" in raw:
            raise RecipeError(f"--signer {key_path} is a private key: name the public one.")
        if raw.count(b"-----BEGIN") > 1:
            raise RecipeError(
                f"--signer {key_path} holds several keys: name a file with the one that must have signed."
            )
        key: Any = serialization.load_pem_public_key(raw)
        pem = _encode_pem(key)
    except (OSError, ValueError, IntegrityError, UnsupportedAlgorithm) as error:
        raise RecipeError(f"--signer {key_path}: no public key that can be read ({error}).") from error
    if pem != stated_key:
        raise IntegrityError(
            f"it is signed by the key {_fingerprint(stated_key)}, not by {_fingerprint(pem)} ({key_path})"
        )


def _fingerprint(pem: str) -> str:
    return f"sha256:{hashlib.sha256(pem.encode()).hexdigest()[:16]}"


def _encode_pem(key: Any) -> str:
    from cryptography.hazmat.primitives import serialization

    kind = serialization.PublicFormat.SubjectPublicKeyInfo
    return str(key.public_bytes(encoding=serialization.Encoding.PEM, format=kind).decode("ascii"))


@contextmanager
def _members_folder(members: Mapping[str, bytes]) -> Iterator[tuple[Path, Path]]:
    """The members under their own fixed names in a folder of ours, and where a signature may stand."""
    with tempfile.TemporaryDirectory(prefix="lora-chat-") as room:
        folder = Path(room) / "adapter"
        folder.mkdir()
        for name, body in members.items():
            (folder / name).write_bytes(body)
        yield folder, Path(room) / "signature"


def _is_installed() -> bool:
    try:
        import model_signing  # noqa: F401 - 1.1 imports OpenSSL without naming it among what it needs
    except ImportError:
        return False
    return True


def _require_model_signing() -> None:
    if not _is_installed():
        raise UnavailableError(f"Signatures need the package model-signing.\nRun: {_INSTALL_COMMAND}")
