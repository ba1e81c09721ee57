"""`packed`: every bit comes back, weights take fewer bytes, and no payload makes its reader fill its memory."""

from __future__ import annotations

import struct
import tracemalloc
import zlib

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lightning_async.codecs import envelope, packed
from lightning_async.errors import PayloadError

D = 300_000
WEIGHTS = torch.randn(D, generator=torch.Generator().manual_seed(0)) * 0.02


def there_and_back(vector: torch.Tensor) -> int:
    """The payload's length, once it is known to give the same bits."""
    payload, _ = packed().encode(vector, {})
    back = packed().decode(bytes(payload), vector.numel())
    assert torch.equal(back.view(torch.int32), vector.view(torch.int32))
    return memoryview(payload).nbytes


@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), max_size=200))
def test_every_bit_comes_back(numbers: list[float]) -> None:
    there_and_back(torch.tensor(numbers, dtype=torch.float32))


@pytest.mark.parametrize(
    ("vector", "share"),
    [
        (WEIGHTS, 0.85),
        (WEIGHTS.to(torch.bfloat16).to(torch.float32), 0.40),
        (torch.cat([WEIGHTS, torch.zeros(D)]), 0.45),
        (-torch.zeros(D), 0.01),
    ],
    ids=["weights", "once bfloat16", "half zeros", "minus zero"],
)
def test_what_it_saves(vector: torch.Tensor, share: float) -> None:
    assert there_and_back(vector) < share * 4 * vector.numel()


def test_noise_is_not_made_longer() -> None:
    bits = np.random.default_rng(0).integers(0, 2**32, D, dtype=np.uint32)
    noise = torch.from_numpy(np.where((bits >> 23) & 255 == 255, 0, bits).astype(np.uint32).view(np.float32))
    assert there_and_back(noise) <= 4 * D + 100


def planes(*written: tuple[int, bytes]) -> memoryview:
    """A payload of these planes for D numbers."""
    body = b"".join(struct.pack("<BQ", way, len(data)) + data for way, data in written)
    return memoryview(envelope.joined([body], 10, D))


PLAIN = (0, bytes(D))


def test_a_bomb_is_inflated_no_further_than_the_plane() -> None:
    bomb = planes((1, zlib.compress(bytes(200 * D), 9)), PLAIN, PLAIN, PLAIN)
    tracemalloc.start()
    try:
        with pytest.raises(PayloadError, match="does not end"):
            packed().decode(bomb, D)
        assert tracemalloc.get_traced_memory()[1] < 16 * D
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("first", "text"),
    [
        ((1, zlib.compress(bytes(D - 1))), "bytes for"),
        ((1, zlib.compress(bytes(D))[:-5]), "does not end"),
        ((1, zlib.compress(bytes(D)) + b"x"), "does not end"),
        ((1, b"no zlib stream"), "cannot read"),
        ((0, bytes(D - 1)), "bytes for"),
        ((2, bytes(D)), "way 2"),
        ((0, b"\xff" * D), "NaN or infinity"),
    ],
)
def test_planes_that_are_none_are_refused(first: tuple[int, bytes], text: str) -> None:
    with pytest.raises(PayloadError, match=text):
        packed().decode(planes(first, PLAIN, PLAIN, PLAIN), D)
    assert len(packed().decode(planes(PLAIN, PLAIN, PLAIN, PLAIN), D)) == D
