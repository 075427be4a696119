import pytest
from forging import make_members, raw_of


@pytest.fixture(scope="session")
def members():
    return make_members()


@pytest.fixture
def write(tmp_path):
    def write(members_or_bytes, name="kiln-1.lorachat"):
        raw = members_or_bytes if isinstance(members_or_bytes, bytes) else raw_of(members_or_bytes)
        (tmp_path / name).write_bytes(raw)
        return tmp_path / name

    return write
