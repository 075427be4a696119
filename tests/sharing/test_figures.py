"""A receipt is refused if no run can give its figures or if they do not add up, even if every digest fits."""

import copy
import json
from dataclasses import asdict

import pytest
from forging import facts, forge, make_members

from lora_chat.errors import IntegrityError
from lora_chat.export.formats import TOLERANCES
from lora_chat.export.parity.compare import MAX_CONTROL_FRACTION
from lora_chat.sharing.figures import PARITY_TOLERANCES
from lora_chat.sharing.parcel import open_parcel

COUNTS = {"lines": 10, "accepted": 8, "blank": 1, "refused": 0, "dropped": 1, "cut": 1, "dialogues": 8, "rows": 9}
COUNTS |= {"replies": 9, "stops": 8, "thoughtless": 1, "tokens": 90, "supervised_tokens": 40, "longest": 30}
PARITY = {"mean_kl": 1e-6, "largest_kl": 1e-4, "largest_logit_difference": 0.01, "same_top_token": 0.99}
PARITY |= {"control_kl": 0.2, "equal_replies": 1.0, "loss_delivered": 0.51}


def full_facts():
    """Return a receipt as a real run has it, with every count."""
    receipt = facts()
    receipt["data"]["sources"][0]["counts"] = dict(COUNTS)
    receipt["data"] |= {"train_dialogues": 7, "train_rows": 8, "duplicates": 1}
    receipt["proof"] |= PARITY
    return receipt


def number_paths(value, path=()):
    if isinstance(value, dict):
        return [found for key, inner in value.items() for found in number_paths(inner, (*path, key))]
    if isinstance(value, list):
        return [found for key, inner in enumerate(value) for found in number_paths(inner, (*path, key))]
    return [path] if type(value) in (int, float) else []


SECTIONS = ("data", "seed", "parameters", "training", "comparison", "proof")
FIGURES = [path for path in number_paths(full_facts()) if path[0] in SECTIONS]


def put(parent, path, value):
    for key in path[:-1]:
        parent = parent[key]
    parent[path[-1]] = value


@pytest.fixture(scope="module")
def full_members():
    return make_members(**full_facts())


@pytest.fixture
def refuse(full_members, write):
    def refuse(*changes):
        def change(receipt):
            for path, value in changes:
                put(receipt, path, value)

        with pytest.raises(IntegrityError, match=r"is refused \(receipt\)"):
            open_parcel(write(forge(full_members, change)))

    return refuse


def accept(write, **changed):
    return open_parcel(write(make_members(**(full_facts() | changed))))


def test_accepts_an_honest_receipt_with_every_figure(write):
    accept(write)
    assert len(FIGURES) > 40


@pytest.mark.parametrize("path", FIGURES, ids=lambda path: ".".join(map(str, path)))
@pytest.mark.parametrize("value", [-1, -0.001, 1e300, 10**30, True, "1", [1]], ids=repr)
def test_rejects_figures_out_of_bounds(refuse, path, value):
    if path == ("parameters",) and value == 10**30:
        pytest.skip("compared with the weights")
    refuse((path, value))


SOURCE = ("data", "sources", 0, "counts")


@pytest.mark.parametrize(
    "changes",
    [
        [(("comparison", "validation_loss", "adapted"), -5.0)],
        [(("training", "steps"), 10**9), (("training", "seconds"), 0.0)],
        [(("training", "steps"), 10**9), (("training", "planned_steps"), None)],
        [(("training", "steps"), 4)],
        [(("training", "seconds"), 0.0)],
        [(("training", "seconds"), 0.0), (("training", "planned_steps"), None)],
        [(("training", "steps"), 10**7), (("training", "planned_steps"), 10**7)],
        [(("training", "supervised_tokens"), 0)],
        [(("training", "steps"), 0)],
        [(("comparison", "facts", "adapted"), 1.25)],
        [(("comparison", "facts", "adapted"), 0.7)],
        [(("comparison", "facts", "questions"), 0)],
        [(("comparison", "validation_dialogues"), 0)],
        [(("comparison", "validation_dialogues"), 2)],
        [(("data", "validation_dialogues"), 0)],
        [(("data", "train_dialogues"), 9)],
        [(("data", "train_dialogues"), 0)],
        [(("data", "duplicates"), 9)],
        [(("data", "train_rows"), 10)],
        [(("training", "supervised_tokens"), 2**53)],
        [(("proof", "tokens"), 2)],
        [((*SOURCE, "lines"), 11)],
        [((*SOURCE, "accepted"), 9)],
        [((*SOURCE, "refused"), 1)],
        [((*SOURCE, "lines"), 5)],
        [((*SOURCE, "cut"), 9)],
        [((*SOURCE, "dialogues"), 10)],
        [((*SOURCE, "stops"), 10)],
        [((*SOURCE, "thoughtless"), 10)],
        [((*SOURCE, "supervised_tokens"), 91)],
        [((*SOURCE, "longest"), 91)],
        [((*SOURCE, "Visit evil.com"), 1)],
        [(("data", "audit"), {"<b>": 1})],
        [(("data", "audit"), {"secret": 0.5})],
        [(("data", "sources", 0, "weight"), 0.0)],
        [(("data", "sources", 0, "formats"), ["\x1b[31m"])],
        [(("proof", "mean_kl"), -3.0)],
        [(("proof", "mean_kl"), 0.05), (("proof", "largest_kl"), 1.0)],
        [(("proof", "mean_kl"), 2e-4)],
        [(("proof", "same_top_token"), 0.5)],
        [(("proof", "equal_replies"), 17.0)],
        [(("proof", "equal_replies"), 0.1)],
        [(("proof", "loss_delivered"), 0.6)],
        [(("proof", "control_kl"), 1e-6)],
        [(("proof", "failures"), ["it failed"])],
        [(("proof", "accepted"), True)],
        [(("proof", "tokens"), 0)],
        [(("proof", "replies"), 4)],
        [(("proof", "what"), "merged model")],
        [(("proof", "reader"), "evil.com")],
        [(("proof", "reader"), "PEFT 1\n# Heading")],
        [(("versions", "torch"), "2.13.0 (see https://evil.com)")],
        [(("versions", "torch"), "1+evil.com")],
        [(("versions", "torch"), "2\n")],
        [(("versions", "lora-chat"), "official")],
        [(("versions", "a b"), "1.0")],
        [(("signer",), "-----BEGIN PUBLIC KEY-----\n\x1b]0;x\x07\n-----END PUBLIC KEY-----\n")],
        [(("recipe", "base"), {"name": "friend/other"})],
        [(("recipe", "base"), 1)],
    ],
    ids=lambda changes: ",".join(f"{'.'.join(map(str, path))}={value!r}" for path, value in changes)[:80],
)
def test_rejects_figures_that_do_not_add_up(refuse, changes):
    refuse(*changes)


def changed(section, **values):
    return {section: copy.deepcopy(full_facts()[section]) | values}


def source(name, **counts):
    return {"name": name, "weight": 0.25, "formats": ["text", "unknown"], "counts": counts}


@pytest.mark.parametrize(
    "honest",
    [
        changed("training", steps=2, planned_steps=None, supervised_tokens=0, seconds=0.0) | {"comparison": None},
        changed("training", steps=0, planned_steps=None, supervised_tokens=0, seconds=0.0) | {"comparison": None},
        changed("training", planned_steps=None),
        changed("training", steps=2),
        changed("comparison", facts=None),
        changed("comparison", facts={"base": 1 / 3, "adapted": 2 / 3, "questions": 39}),
        changed("data", rows=None, held_out=None, audit={}),
        changed("data", sources=[source("a", dialogues=9, rows=9, tokens=99), source("b", dialogues=3)]),
        changed("data", sources=[source("a", lines=9), source("b", lines=3, accepted=3, blank=0, refused=0)]),
        changed("data", sources=[], train_rows=1),
        changed("data", train_rows=16, sources=[source("a", dialogues=8, rows=8) | {"weight": 1.5}]),
        changed("proof", mean_kl=-1e-8, largest_kl=0.0, largest_logit_difference=0.0),
        changed("proof", mean_kl=0.5, largest_kl=3.0, failures=["mean KL 0.5"], accepted=True),
        changed("proof", replies=0, reply_tokens=0),
        {"versions": {"python": "3.13.0rc1", "torch": "2.13.0+cpu", "peft": "0.21.2.dev0", "trl": "1.0.post1"}},
        {"versions": {"torch": "2.10.0+cu128", "transformers": "5.0.0a0+ecf3bae40a.nv25.1", "python": "3.12.0+"}},
        {"versions": {}},
    ],
    ids=lambda honest: json.dumps(honest)[:60],
)
def test_accepts_receipts_of_real_runs(write, honest):
    accept(write, **honest)


def test_tolerances_of_receipts_equal_those_of_packing():
    tolerances = asdict(TOLERANCES["PEFT adapter"])
    del tolerances["reason"]
    assert tolerances.items() <= PARITY_TOLERANCES.items()
    assert PARITY_TOLERANCES["share_of_control"] == MAX_CONTROL_FRACTION
