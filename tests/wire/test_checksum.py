"""The checksum against its definition, byte by byte, at every alignment and length."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_async.wire.checksum import checksum


def defined(data: bytes) -> int:
    padded = data + bytes(-len(data) % 8)
    words = (int.from_bytes(padded[at : at + 8], "little") for at in range(0, len(padded), 8))
    return (sum(words) + len(data)) % 2**64 % (2**63 - 1)


@given(st.binary(max_size=200), st.integers(0, 8))
def test_any_length_and_alignment(data, shift):
    assert checksum(data) == defined(data)
    assert checksum(memoryview(bytes(shift) + data)[shift:]) == defined(data)


def test_the_sum_wraps():
    data = b"\xff" * 64 + b"\x01\x02"
    assert checksum(data) == defined(data)


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_every_kind_of_frame(kind):
    assert checksum(kind(b"")) == 0
    assert checksum(kind(b"\1")) == 2
    assert checksum(kind(b"\1" + bytes(8))) == 10


def test_it_fits_a_signed_64_bit_integer_and_never_says_none():
    largest = (2**64 - 1 - 8).to_bytes(8, "little")
    assert 0 <= checksum(largest) < 2**63


@given(st.binary(min_size=1, max_size=64), st.integers(0), st.integers(0, 7))
def test_one_flipped_bit_shows(data, position, bit):
    other = bytearray(data)
    other[position % len(other)] ^= 1 << bit
    assert checksum(data) != checksum(other)


def test_vectors_are_read_where_they_are():
    vector = np.ones(2**20, dtype=np.float32)
    assert checksum(memoryview(vector)) == checksum(vector.tobytes())
