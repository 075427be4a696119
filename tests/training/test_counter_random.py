"""The random bits are those of the published generators, and are independent across rows, columns and streams."""

import itertools

import pytest
import torch

from lora_chat.training.counter_random import iterate_random_bits, mix, mix_integer, nth_output
from lora_chat.training.keyed_dropout import drop

_M32 = 2**32 - 1


def lowbias32(value):
    """Return the hash of a 32-bit integer, written after https://github.com/skeeto/hash-prospector."""
    value = ((value ^ (value >> 16)) * 0x7FEB352D) & _M32
    value = ((value ^ (value >> 15)) * 0x846CA68B) & _M32
    return value ^ (value >> 16)


def make_bits(keys, stream, width):
    return torch.cat([bits.clone() for _, bits in iterate_random_bits(keys, stream, width)])


def test_outputs_are_those_of_splitmix64():
    """The outputs for seed 1234567 at https://rosettacode.org/wiki/Pseudo-random_numbers/Splitmix64."""
    expected = [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]
    outputs = nth_output(torch.full((5,), 1234567), torch.arange(5))
    assert [value % 2**64 for value in outputs.tolist()] == expected


def test_integers_and_tensors_have_the_same_hash():
    values = [0, 1, -1, 2**63 - 1, -(2**63), 123456789]
    assert mix(torch.tensor(values)).tolist() == [mix_integer(value) for value in values]


@pytest.mark.parametrize(("rows", "width"), [(1, 1), (3, 7), (700, 191), (5, 2**17 + 3)])
def test_bits_equal_the_published_hash_in_every_tile(rows, width):
    keys = mix(torch.arange(rows))
    bits = make_bits(keys, 5, width)
    assert bits.shape == (rows, width)
    column_seed = mix_integer(~5)
    for row, column in itertools.product({0, rows // 2, rows - 1}, {0, width // 2, width - 1}):
        word = mix_integer(int(keys[row]) + mix_integer(5)) >> 32
        output = int(nth_output(torch.tensor([column_seed]), torch.tensor([column // 2]))) >> 32
        hashed = lowbias32((word ^ output) & _M32)
        assert int(bits[row, column]) & 0xFFFF == (hashed >> 16 if column % 2 else hashed & 0xFFFF)


@pytest.mark.parametrize("share", [0.01, 0.1, 0.5, 0.9])
def test_dropout_has_its_share_and_keeps_the_mean(share):
    values = drop(torch.ones(1, 1000, 576), mix(torch.arange(1000))[None], 3, share)
    deviation = (share * (1 - share) / values.numel()) ** 0.5
    assert float((values == 0).double().mean()) == pytest.approx(share, abs=4 * deviation + 2**-16)
    assert float(values.max()) == pytest.approx(1 / (1 - share), rel=2e-3)
    # The number of dropped values in a row and in a column has the variance of independent draws.
    for axis, count in ((2, 576), (1, 1000)):
        variance = (values == 0).double().sum(axis).var()
        assert float(variance) == pytest.approx(count * share * (1 - share), rel=0.25)


def test_rows_columns_streams_and_steps_are_not_correlated():
    """Correlations of all shifted pairs stay within 4.5 standard deviations of independent numbers."""
    keys, other_step = mix(torch.arange(1000)), mix(torch.arange(1000) + 2**40)
    first = make_bits(keys, 1, 128).double()
    matrices = [first.roll(shift, axis) for axis in (0, 1) for shift in (1, 2, 3, 64)]
    matrices += [make_bits(keys, stream, 128).double() for stream in (2, 3, 200)] + [
        make_bits(other_step, 1, 128).double()
    ]
    for other in matrices:
        for a, b in (
            (first, other),
            (first.abs(), other.abs()),
            (first % 2, other % 2),
            (first < -26000, other < -26000),
        ):
            correlation = torch.corrcoef(torch.stack([a.flatten().double(), b.flatten().double()]))[0, 1]
            assert abs(float(correlation)) < 4.5 / first.numel() ** 0.5


def test_numbers_are_uniform():
    counts = torch.bincount((make_bits(mix(torch.arange(2000)), 9, 256).long() + 2**15).flatten() >> 8, minlength=256)
    expected = 2000 * 256 / 256
    chi_square = float(((counts - expected) ** 2 / expected).sum())
    assert abs(chi_square - 255) < 4.5 * (2 * 255) ** 0.5
