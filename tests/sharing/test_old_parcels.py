"""A parcel of each released version of the format still opens. Never write these files again; add a new one."""

from pathlib import Path

import pytest

from lora_chat.sharing.parcel import open_parcel

PARCELS = sorted((Path(__file__).parent / "parcels").glob("*.lorachat"))


def test_has_a_parcel_of_each_version():
    assert [path.stem for path in PARCELS] == ["version-1-signed", "version-1", "version-2", "version-5", "version-6"]


@pytest.mark.parametrize("path", PARCELS, ids=lambda path: path.stem)
def test_opens_with_the_same_content(path):
    parcel = open_parcel(path)
    assert parcel.receipt.name == "kiln-1"
    assert path.stem.startswith(f"version-{parcel.receipt.version}")
    assert parcel.stored.identity.version == min(parcel.receipt.version, 2)
    assert (parcel.stored.identity.stops is None) == (parcel.receipt.version == 1)
    assert parcel.receipt.base.base == "friend/tiny"
    assert (parcel.stored.config["r"], parcel.receipt.parameters) == (2, 28)
    assert round(float(sum(tensor.sum() for tensor in parcel.stored.read_weights().values())), 4) == SUM


SUM = 4.8996
