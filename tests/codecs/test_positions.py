"""The position code: any set comes back, in 64 bits, close to the entropy of such sets."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_async.codecs import indices, kernels, rice
from lightning_async.codecs.envelope import HEADER_BYTES, Reader
from lightning_async.errors import PayloadError

HUGE = 2**33 + 12345


def reader(data: bytes) -> Reader:
    return Reader("test", np.frombuffer(bytes(HEADER_BYTES) + data, dtype=np.uint8))


def through(places: np.ndarray, d: int) -> np.ndarray:
    data = indices.encode(places, d)
    assert len(data) <= indices.most_bytes(places.size, d)
    source = reader(data)
    back = indices.decode(source, d, places.size)
    source.end()
    return back


@pytest.fixture(params=["numba", "numpy"], autouse=True)
def path(request, monkeypatch):
    if request.param == "numpy":
        monkeypatch.setattr(kernels, "compiled", lambda: None)
    elif kernels.compiled() is None:
        pytest.skip("numba is not installed")


@given(d=st.integers(1, 20_000), share=st.floats(0, 1), seed=st.integers(0, 99))
def test_any_set_comes_back(d, share, seed):
    places = np.flatnonzero(np.random.default_rng(seed).random(d) < share**4)
    assert np.array_equal(through(places, d), places)


@pytest.mark.parametrize("places", [[0], [HUGE - 1], [2**31 - 1, 2**31, 2**31 + 1], [0, 2**32 - 1, 2**32, HUGE - 1]])
def test_beyond_two_to_the_31(places):
    """By arithmetic alone: nothing of the vector's size is allocated."""
    places = np.array(places, dtype=np.int64)
    assert np.array_equal(through(places, HUGE), places)


@pytest.mark.parametrize("k", [41, 64])
def test_a_fixed_number_per_chunk_costs_its_entropy_and_three_percent(k):
    rng = np.random.default_rng(k)
    places = np.concatenate([np.sort(rng.choice(4096, k, replace=False)) + 4096 * i for i in range(500)])
    floor = (math.lgamma(4097) - math.lgamma(k + 1) - math.lgamma(4097 - k)) / math.log(2) / k
    assert 8 * len(indices.encode(places, 500 * 4096)) / places.size < 1.03 * floor


def test_pages_adapt_to_their_density():
    rng = np.random.default_rng(0)
    density = np.repeat([0.2, 0.001, 0.03, 0.0, 0.0005], 200_000)
    places = np.flatnonzero(rng.random(density.size) < density)
    p = density[density > 0]
    entropy = -(p * np.log2(p) + (1 - p) * np.log2(1 - p)).sum()
    assert 8 * len(indices.encode(places, density.size)) < 1.05 * entropy


@given(values=st.lists(st.integers(0, 5000), max_size=200), seed=st.integers(0, 9))
def test_rice_with_any_widths(values, seed):
    numbers = np.array(values, dtype=np.int64)
    widths = np.random.default_rng(seed).integers(0, rice.WIDEST + 1, numbers.size).astype(np.uint8)
    coded = rice.encode(numbers, widths)
    assert np.array_equal(rice.decode(reader(coded), widths, int((numbers >> widths).sum())), numbers)
    if numbers.size:
        with pytest.raises(PayloadError):
            rice.decode(reader(coded[:-1]), widths, 10**6)


def test_a_place_beyond_the_end_is_refused():
    data = indices.encode(np.array([3, 4095]), 4096)
    with pytest.raises(PayloadError, match="beyond the end"):
        indices.decode(reader(data), 4095, 2)


def test_a_unary_string_with_other_ones_is_refused():
    widths = np.full(20, 2, dtype=np.uint8)
    coded = bytearray(rice.encode(np.arange(20), widths))
    for last in (0, coded[-1] | 128, 255):
        with pytest.raises(PayloadError, match="does not hold"):
            rice.decode(reader(bytes([*coded[:-1], last])), widths, 100)


def test_a_unary_string_longer_than_its_numbers_can_need_is_refused():
    widths = np.full(20, 2, dtype=np.uint8)
    with pytest.raises(PayloadError, match="has 5000 bytes"):
        rice.decode(reader((5000).to_bytes(4, "little") + bytes(6000)), widths, 100)
