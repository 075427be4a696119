"""Invalid weights of a stranger's adapter, in a folder or a parcel, end in one message."""

import json
import os
import struct
import time

import pytest
import torch
from safetensors.torch import load_file, save

from lora_chat.errors import IntegrityError
from lora_chat.models.adapter import check_adapter_fits
from lora_chat.models.adapter_config import LoraSettings
from lora_chat.models.adapter_files import read_adapter
from lora_chat.models.base_model import load_meta_model
from lora_chat.sharing.tensor_checks import check_tensors, read_tensors
from lora_chat.system.safetensors_header import check_tensor_table

pytestmark = pytest.mark.slow

NAME = "adapter_model.safetensors"
LAYER = "base_model.model.model.layers.0.self_attn.q_proj.lora_{}.weight"
A, B = LAYER.format("A"), LAYER.format("B")


@pytest.fixture(scope="module")
def made(random_base, make_adapter, tmp_path_factory):
    """Return a valid adapter and the skeleton of its base."""
    folder = tmp_path_factory.mktemp("made") / "adapter"
    base, _ = make_adapter(random_base("llama"), folder, "none")
    return folder, base


@pytest.fixture
def fits(made):
    folder, base = made
    good = (folder / NAME).read_bytes()
    yield lambda: check_adapter_fits(load_meta_model(base), read_adapter(folder))
    (folder / NAME).write_bytes(good)


def _table(raw):
    length = int.from_bytes(raw[:8], "little")
    return json.loads(raw[8 : 8 + length]), raw[8 + length :]


def _built(table, body):
    text = table if isinstance(table, bytes) else json.dumps(table).encode()
    return struct.pack("<Q", len(text)) + text + body


def _one(table, **changed):
    return {**table, A: {**table[A], **changed}}


HEADERS = {
    "overlap": lambda t: _one(t, data_offsets=t[B]["data_offsets"]),
    "gap": lambda t: {name: entry for name, entry in t.items() if name != A},
    "negative": lambda t: _one(t, data_offsets=[-4, 4]),
    "texts": lambda t: _one(t, data_offsets=[str(place) for place in t[A]["data_offsets"]]),
    "fractions": lambda t: _one(t, data_offsets=[float(place) for place in t[A]["data_offsets"]]),
    "truths": lambda t: _one(t, shape=[True, True]),
    "10^18": lambda t: _one(t, shape=[10**18, 10**18]),
    "2^64": lambda t: _one(t, shape=[2**64, 0]),
    "nothing": lambda t: _one(t, shape=[0, 10**18], data_offsets=[0, 0]),
    "dimensions": lambda t: _one(t, shape=[*t[A]["shape"], *[1] * 9]),
    "unknown type": lambda t: _one(t, dtype="X8"),
    "no type": lambda t: _one(t, dtype=3),
    "other key": lambda t: _one(t, code="x"),
    "metadata list": lambda t: {**t, "__metadata__": ["x"]},
    "metadata number": lambda t: {**t, "__metadata__": {"format": 1}},
    "twice": lambda t: b'{"%s":%s,' % (A.encode(), json.dumps(t[A]).encode()) + json.dumps(t).encode()[1:],
    "shape twice": lambda t: json.dumps(t).encode().replace(b'"shape"', b'"shape": [1], "shape"', 1),
    "metadata twice": lambda t: b'{"__metadata__":{"x":"y"},' + json.dumps(t).encode()[1:],
    "long number": lambda t: json.dumps(t).encode().replace(b'"shape": [', b'"shape": [' + b"9" * 5000 + b",", 1),
    "no number": lambda t: json.dumps(t).encode().replace(b'"shape": [', b'"shape": [NaN,', 1),
    "mark": lambda t: b"\xef\xbb\xbf" + json.dumps(t).encode(),
    "UTF-16": lambda t: json.dumps(t).encode("utf-16"),
    "deep": lambda t: b'{"x":' + b"[" * 50_000 + b"]" * 50_000 + b"}",
    "path": lambda t: {("../../" + name if name == A else name): entry for name, entry in t.items()},
    "escape": lambda t: {("\x1b]0;x\x07" + name if name == A else name): entry for name, entry in t.items()},
    "half a character": lambda t: json.dumps(t).encode().replace(b"base_model", b"\\ud800", 1),
}


@pytest.mark.parametrize("kind", HEADERS)
def test_refuses_invalid_header(made, fits, kind):
    path = made[0] / NAME
    table, body = _table(path.read_bytes())
    path.write_bytes(_built(HEADERS[kind](table), body))
    started = time.process_time()
    with pytest.raises(IntegrityError) as caught:
        fits()
    assert str(path.parent) in str(caught.value)
    raw = path.read_bytes()
    with pytest.raises(IntegrityError):  # the same in a parcel
        check_tensors(read_tensors(raw), LoraSettings(4, 8, 0, ("q_proj",)))
    assert time.process_time() - started < 5


def test_a_header_of_too_many_tensors_is_refused():
    with pytest.raises(ValueError, match="not a table of at most"):
        check_tensor_table(dict.fromkeys(range(100_001)), 0)


TYPES = [
    *(torch.float64, torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e8m0fnu, torch.complex64),
    *(torch.bool, torch.uint8, torch.int8, torch.int64),
]


@pytest.mark.parametrize("type_", TYPES, ids=str)
@pytest.mark.parametrize("which", ["one", "all"])
def test_refuses_unexpected_dtype(made, fits, type_, which):
    good = load_file(made[0] / NAME)
    odd = {name: torch.ones(t.shape).to(type_) if which == "all" or name == A else t for name, t in good.items()}
    (made[0] / NAME).write_bytes(save(odd))
    with pytest.raises(IntegrityError, match="as torch"):
        fits()


@pytest.mark.parametrize("half", [A, B])
def test_refuses_mixed_dtypes(made, fits, half):
    good = load_file(made[0] / NAME)
    raw = save({**good, half: good[half].half()})
    (made[0] / NAME).write_bytes(raw)
    with pytest.raises(IntegrityError, match="other half"):
        fits()
    pair = {name: tensor for name, tensor in read_tensors(raw).items() if name in (A, B)}
    settings = LoraSettings(pair[A].shape[0], 8, 0, ("q_proj",))
    with pytest.raises(IntegrityError, match="its two weights"):
        check_tensors(pair, settings)
    check_tensors({**pair, A: pair[A].half(), B: pair[B].half()}, settings)


@pytest.mark.parametrize("type_", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_unchanged_adapter_fits(made, fits, type_):
    good = load_file(made[0] / NAME)
    (made[0] / NAME).write_bytes(save({name: tensor.to(type_) for name, tensor in good.items()}))
    fits()


def test_weights_of_many_gigabytes_are_not_read(made, fits):
    path = made[0] / NAME
    table, body = _table(path.read_bytes())
    end = len(body)
    table["x"] = {"dtype": "U8", "shape": [10**11], "data_offsets": [end, end + 10**11]}
    path.write_bytes(_built(table, body))
    os.truncate(path, path.stat().st_size + 10**11)  # a file of holes
    started = time.process_time()
    with pytest.raises(IntegrityError, match="does not fit this base: its weights take 100,0"):
        fits()
    assert time.process_time() - started < 5
