"""A parcel of each released version of the format opens for ever. Never make these files anew: add one."""

from pathlib import Path

import pytest

from lora_chat.sharing.parcel import open_parcel

PARCELS = sorted((Path(__file__).parent / "parcels").glob("*.lorachat"))


def test_there_is_one_of_each_version():
    assert [path.stem for path in PARCELS] == ["version-1-signed", "version-1", "version-2"]


@pytest.mark.parametrize("path", PARCELS, ids=lambda path: path.stem)
def test_it_opens_and_says_what_it_said(path):
    parcel = open_parcel(path)
    assert parcel.receipt.name == "kiln-1"
    assert path.stem.startswith(f"version-{parcel.receipt.version}")
    assert parcel.stored.identity.version == parcel.receipt.version
    assert (parcel.stored.identity.stops is None) == (parcel.receipt.version == 1)
    assert parcel.receipt.base.base == "friend/tiny"
    assert (parcel.stored.config["r"], parcel.receipt.parameters) == (2, 28)
    assert round(float(sum(tensor.sum() for tensor in parcel.stored.read_weights().values())), 4) == SUM


SUM = 4.8996
