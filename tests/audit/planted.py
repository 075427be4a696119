"""The set used to develop the detectors: secrets, personal data and their harmless look-alikes."""

import base64
import hashlib
import uuid

from made_up import Maker, Planted, groups, read_lookalikes
from planted_people import make_personal_data
from planted_secrets import make_secrets


def make_lookalikes(seed):
    """Return at least as many harmless texts, with empty values."""
    m = Maker(seed)

    def wrong_card():
        value = m.card("4", 16)
        return groups(value[:-1] + str((int(value[-1]) + 1) % 10))

    def wrong_iban():
        value = m.iban("DE", m.digits("#" * 18))
        return groups(value[:-1] + str((int(value[-1]) + 1) % 10))

    image = base64.b64encode(m.random.randbytes(90)).decode()
    sha = [hashlib.sha1(str(i).encode()).hexdigest() for i in range(4)]
    uuids = [str(uuid.UUID(bytes=m.random.randbytes(16))) for _ in range(3)]
    texts = [
        *read_lookalikes(m, "lookalikes.txt"),
        f"git checkout {sha[0]}",
        f"commit {sha[1][:12]}",
        f"sha256:{sha[2]}{sha[3][:24]}",
        f"image@sha256:{hashlib.sha256(b'x').hexdigest()}",
        f"id {uuids[0]}",
        f"Session {uuids[1]} ended",
        f"GET /items/{uuids[2]}/edit",
        f"data:image/png;base64,{image}",
        f"md5 {hashlib.md5(b'y').hexdigest()}",
        "AKIA" + "IOSFODNN7EXAMPLE",
        "ghp_" + "x" * 36,
        "hf_" + "hub_download(repo_id)",
        wrong_card(),
        f"Card {wrong_card()}",
        wrong_iban(),
        f"IBAN {wrong_iban()}",
    ]
    return [Planted("", "", text, "") for text in texts]


def make_planted(seed):
    return [*make_secrets(seed), *make_personal_data(seed), *make_lookalikes(seed)]
