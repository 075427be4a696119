"""Sign and check members with an elliptic curve key, in the format of OpenSSF model signing.

Only this module imports model_signing (https://sigstore.github.io/model-transparency/). The members are signed as the
files of a folder, so that the command of that project can check a repository on the hub too.
"""

import base64
import hashlib
import io
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING

from lora_chat.errors import IntegrityError, MissingPackageError, UsageError
from lora_chat.system.regular_files import open_regular_file
from lora_chat.system.strict_json import parse_strict_json

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.types import PublicKeyTypes

_MAX_KEY_BYTES = 1 << 16
_INSTALL_COMMAND = "pip install 'lora-chat[sign]'"


def read_public_key(private_key: Path) -> str:
    """Return the public key of a private key file, as PEM. Raises UsageError if the file is not such a key."""
    _require_model_signing()
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    try:
        key = serialization.load_pem_private_key(private_key.read_bytes(), None)
    except (OSError, ValueError, TypeError) as error:
        raise UsageError(f"Cannot read a private key: {error} (--key {private_key}). {_CREATE_KEY_HINT}") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise UsageError(f"Not an elliptic curve key: --key {private_key}. {_CREATE_KEY_HINT}")
    return _encode_pem(key.public_key())


_CREATE_KEY_HINT = "Fix: openssl ecparam -name prime256v1 -genkey -noout -out key.pem"


def sign_members(members: Mapping[str, bytes], private_key: Path) -> bytes:
    """Sign the members; return a Sigstore bundle. Raises UsageError for a key that cannot sign."""
    _require_model_signing()
    import model_signing

    with _members_folder(members) as (folder, signature):
        try:
            signer = model_signing.signing.Config().use_elliptic_key_signer(private_key=private_key)
            signer.sign(folder, signature)
        except ValueError as error:
            raise UsageError(f"Cannot sign: {error} (--key {private_key}). {_CREATE_KEY_HINT}") from error
        return signature.read_bytes()


def check_signature(
    members: Mapping[str, bytes], signature: bytes, public_key: str, *, required: bool
) -> tuple[str, bool | None]:
    """Check a signature; return a description and True, or None if the package is missing and not required.

    Raises IntegrityError if the signature does not belong to these members and this key.
    """
    _check_canonical(signature)
    signer = f"by the key {_fingerprint(public_key)}"
    if not _is_installed():
        if required:
            _require_model_signing()
        return f"{signer}, not checked. Fix: {_INSTALL_COMMAND}", None
    import model_signing

    with _members_folder(members) as (folder, bundle):
        bundle.write_bytes(signature)
        key = bundle.with_name("key.pem")
        key.write_text(public_key)
        _check_key(public_key)
        try:
            with redirect_stdout(io.StringIO()):  # it prints warnings about old formats
                model_signing.verifying.Config().use_elliptic_key_verifier(public_key=key).set_hashing_config(
                    model_signing.hashing.Config()
                ).verify(folder, bundle)
        except Exception as error:  # untrusted JSON, protobuf and PEM make it fail in many ways
            reason = " ".join(str(error).split())[:160] or type(error).__name__
            raise IntegrityError(f"the signature is invalid ({reason})") from error
    return f"valid, {signer}", True


def _check_canonical(signature: bytes) -> None:
    """Raise IntegrityError for a bundle that another parser could read differently."""
    try:
        bundle = parse_strict_json(signature.decode("ascii"))
        envelope = bundle["dsseEnvelope"]
        (only,) = envelope["signatures"]
        texts = [envelope["payload"], only["sig"]]
        is_canonical = all(base64.b64encode(base64.b64decode(text, validate=True)).decode() == text for text in texts)
    except (ValueError, TypeError, KeyError) as error:
        raise IntegrityError("the signature is not a bundle of exactly one signature") from error
    if not is_canonical or signature.strip() != signature:
        raise IntegrityError("the signature is not in the form that model signing writes")


def _check_key(text: str) -> None:
    """Raise IntegrityError unless the text is one elliptic curve public key in its canonical form."""
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    try:
        key = serialization.load_pem_public_key(text.encode())
        valid = isinstance(key, ec.EllipticCurvePublicKey) and _encode_pem(key) == text
    except (ValueError, TypeError, UnsupportedAlgorithm):
        valid = False
    if not valid:
        raise IntegrityError("the signer in the receipt is not an elliptic curve public key in PEM")


def check_signer(stated_key: str, key_path: Path) -> None:
    """Raise IntegrityError unless the key in a receipt equals the key in a PEM file."""
    _require_model_signing()
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives import serialization

    try:
        with os.fdopen(open_regular_file(key_path, follow=True), "rb") as file:
            raw = file.read(_MAX_KEY_BYTES)
        if b"PRIVATE KEY" in raw:
            raise UsageError(f"A private key is given: --signer {key_path}. Fix: name the file of the public key.")
        if raw.count(b"-----BEGIN") > 1:
            raise UsageError(
                f"Several keys are given: --signer {key_path}. Fix: name a file with only the key of the signer."
            )
        key = serialization.load_pem_public_key(raw)
        pem = _encode_pem(key)
    except (OSError, ValueError, IntegrityError, UnsupportedAlgorithm) as error:
        raise UsageError(f"Cannot read a public key: {error} (--signer {key_path}).") from error
    if pem != stated_key:
        raise IntegrityError(
            f"it is signed by the key {_fingerprint(stated_key)}, not by {_fingerprint(pem)} ({key_path})"
        )


def _fingerprint(pem: str) -> str:
    """Return a short digest of a key for messages."""
    return f"sha256:{hashlib.sha256(pem.encode()).hexdigest()[:16]}"


def _encode_pem(key: "PublicKeyTypes") -> str:
    """Encode a public key as PEM."""
    from cryptography.hazmat.primitives import serialization

    key_format = serialization.PublicFormat.SubjectPublicKeyInfo
    return str(key.public_bytes(encoding=serialization.Encoding.PEM, format=key_format).decode("ascii"))


@contextmanager
def _members_folder(members: Mapping[str, bytes]) -> Iterator[tuple[Path, Path]]:
    """Write the members to a temporary folder; yield the folder and a path outside of it for the signature."""
    with tempfile.TemporaryDirectory(prefix="lora-chat-") as work_folder:
        folder = Path(work_folder) / "adapter"
        folder.mkdir()
        for name, body in members.items():
            (folder / name).write_bytes(body)
        yield folder, Path(work_folder) / "signature"


def _is_installed() -> bool:
    """Return whether model_signing can be imported."""
    try:
        import model_signing  # noqa: F401 - 1.1 imports OpenSSL without declaring the dependency
    except ImportError:
        return False
    return True


def _require_model_signing() -> None:
    """Raise MissingPackageError unless model_signing is installed."""
    if not _is_installed():
        raise MissingPackageError(
            f"Package not installed: model-signing (needed for signatures). Fix: {_INSTALL_COMMAND}"
        )
