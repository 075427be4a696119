"""Replies with secrets and personal data, plain and disguised, and of any length."""

import base64
import random

import held_out
import planted
from made_up import ALNUM, BASE32, Maker

M = Maker(21)
GITHUB = "gh" + "p_" + M.chars(ALNUM, 30) + "x7Kq2B"
AWS = "AK" + "IA" + "QZ7TXR4M2WKV5LHD"
JWT = M.jwt()
CARD = M.card("4", 16)
IBAN = M.iban("DE", M.digits("#" * 18))
MAIL = "anna.meier77" + "@gmail.com"
PHONE = "+49 151 " + "23456789"
PLANTED = [entry.text for source in (planted, held_out) for entry in source.make_planted(3)]
WORDS = [
    *("the", "of", "I", "a", "password is", "key:", "token=", "call me at", "ok", "12", "3456", "sk-", "eyJ", "ghp_"),
    *("AKIA", "DE89", "-----BEGIN RSA PRIVATE KEY-----", "-----END PRIVATE KEY-----", "-----", "@", ".", ",", ";"),
    *(
        '"',
        "'",
        "(",
        ")",
        "=",
        "\n",
        "=\n",
        "\t",
        "密码",
        "电话",
        "13812345678",
        "。",
        "é",
        "naïve",
        "return",
        "&#107;",
    ),
    *("\\u0041", "=3D", "\u200b", "\u00ad", "ＡＫＩＡ", "１２", "[SECRET]", '{"a": 1}', "|", "1 2 3 4 5 6", "555-0100"),
]


def private_key(lines, maker=M):
    body = "\n".join(maker.chars(ALNUM + "+/", 64) for _ in range(lines))
    return f"-----BEGIN RSA PRIVATE KEY-----\n{body}\n-----END RSA PRIVATE KEY-----"


def disguise(rnd, value):
    """Write a value in one of the spellings that the audit finds."""
    style = rnd.randrange(9)
    if style == 0:
        return "".join(c + rnd.choice(["", "\u200b"]) for c in value)
    if style == 1:
        return "".join(f"&#{ord(c)};" if rnd.random() < 0.5 else c for c in value)
    if style == 2:
        at = rnd.randrange(1, len(value))
        return value[:at] + rnd.choice(["\n", " ", "\n  ", "=\n"]) + value[at:]
    if style == 3:
        length = rnd.choice([1, 4, 8, 16])
        return rnd.choice([" ", "\n"]).join(value[i : i + length] for i in range(0, len(value), length))
    if style == 4:
        return "".join(f"={ord(c):02X}" if rnd.random() < 0.4 and ord(c) < 128 else c for c in value)
    if style == 5:
        return "".join(chr(ord(c) + 0xFEE0) if "!" <= c <= "~" else c for c in value)
    return value


def make_reply(seed):
    """Return a reply of random parts, joined with or without blanks."""
    rnd = random.Random(seed)
    maker = Maker(seed)
    parts = []
    for _ in range(rnd.randrange(1, 12)):
        value = rnd.choice(
            [
                "gh" + "p_" + maker.chars(ALNUM, 36),
                "AK" + "IA" + maker.chars(BASE32, 16),
                maker.jwt(),
                maker.card("4", 16),
                maker.iban("DE", maker.digits("#" * 18)),
                PHONE,
                private_key(rnd.randrange(1, 9), maker),
                base64.b64encode(("x" * rnd.randrange(50) + GITHUB).encode()).decode(),
            ]
        )
        parts.append(
            rnd.choice(
                [
                    rnd.choice(PLANTED),
                    disguise(rnd, value),
                    " ".join(rnd.choice(WORDS) for _ in range(rnd.randrange(1, 15))),
                    "".join(rnd.choice(WORDS) for _ in range(rnd.randrange(1, 8))),
                    "The weather is nice today, and we go for a long walk.",
                    " ".join(str(rnd.randrange(10**4)) for _ in range(rnd.choice([3, 30, 30, 30, 500]))),
                ]
            )
        )
    return rnd.choice(["", "  ", " ", "\n", ", "]).join(parts)
