"""Random values in the documented formats of vendors and states, from a seeded generator.

Values are joined from parts, because scanners of repositories would report a line that looks like a secret.
"""

import base64
import importlib
import json
import random
import string
from pathlib import Path
from typing import NamedTuple

ALNUM = string.ascii_letters + string.digits
BASE64URL = ALNUM + "-_"
HEX = string.digits + "abcdef"
BASE32 = string.ascii_uppercase + "234567"


class Planted(NamedTuple):
    """A sentence with a value that must be found, or must not be found if `kind` is empty."""

    kind: str
    detail: str
    text: str
    value: str


class Maker:
    """A generator of random values in the documented formats of vendors and states."""

    def __init__(self, seed):
        self.random = random.Random(seed)

    def chars(self, alphabet, length):
        return "".join(self.random.choices(alphabet, k=length))

    def digits(self, pattern):
        return "".join(self.chars(string.digits, 1) if c == "#" else c for c in pattern)

    def checked(self, module, pattern):
        """Replace # by random digits and A by random letters until the checksum is valid."""
        valid = importlib.import_module(f"stdnum.{module}").is_valid
        while True:
            value = "".join(self.chars(string.ascii_uppercase, 1) if c == "A" else c for c in self.digits(pattern))
            if valid(value):
                return value

    def iban(self, country, bank):
        """Return a number with the check digits of ISO 7064 mod 97-10."""
        number = "".join(str(int(c, 36)) for c in f"{bank}{country}00")
        return f"{country}{98 - int(number) % 97:02}{bank}"

    def card(self, prefix, length):
        while True:
            value = prefix + self.chars(string.digits, length - len(prefix))
            if sum(sum(divmod(int(d) * (1 + i % 2), 10)) for i, d in enumerate(reversed(value))) % 10 == 0:
                return value

    def jwt(self):
        parts = [{"alg": "HS256", "typ": "JWT"}, {"sub": self.chars(string.digits, 7), "name": self.chars(ALNUM, 8)}]
        head = [base64.urlsafe_b64encode(json.dumps(part).encode()).decode().rstrip("=") for part in parts]
        return ".".join([*head, self.chars(BASE64URL, 43)])

    def private_key(self, kind):
        body = "\n".join(self.chars(ALNUM + "+/", 64) for _ in range(4))
        return f"-----BEGIN {kind}PRIVATE" + f" KEY-----\n{body}\n-----END {kind}PRIVATE" + " KEY-----"


def groups(value, size=4, by=" "):
    return by.join(value[i : i + size] for i in range(0, len(value), size))


def read_lookalikes(maker, name):
    """Return the lines of a file with random digits in place of ¤."""
    lines = (Path(__file__).parent / name).read_text(encoding="utf-8").splitlines()
    return [maker.digits(line.replace("#", "\0").replace("¤", "#")).replace("\0", "#") for line in lines]
