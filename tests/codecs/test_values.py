"""Kept numbers: what a hostile worker may write there is found, and what is written is close to its entropy."""

from __future__ import annotations

import numpy as np
import pytest

from lightning_async.codecs import indices
from lightning_async.codecs.envelope import HEADER_BYTES, Reader
from lightning_async.codecs.values import VALUES
from lightning_async.errors import PayloadError


def reader(data: bytes) -> Reader:
    return Reader("test", np.frombuffer(bytes(HEADER_BYTES) + data, dtype=np.uint8))


def survivors(n: int = 20_000) -> np.ndarray:
    x = np.random.default_rng(0).standard_t(3, 60 * n)
    return x[np.abs(x) > np.quantile(np.abs(x), 1 - 1 / 60)].astype(np.float32)[:n]


@pytest.mark.parametrize("name", VALUES)
def test_encode_says_what_decode_will(name):
    x = survivors()
    coded, sent = VALUES[name].encode(x)
    source = reader(coded)
    assert np.array_equal(VALUES[name].decode(source, x.size), sent)
    source.end()
    assert len(coded) <= VALUES[name].most_bytes(x.size)
    assert (sent * x >= 0).all()


@pytest.mark.parametrize(("name", "bits"), [("int8", 6.8), ("int4", 3.6), ("2bit", 1.8)])
def test_survivors_cost_less_than_their_format_has_bits(name, bits):
    x = survivors()
    assert 8 * len(VALUES[name].encode(x)[0]) / x.size < bits


def test_a_level_beyond_the_format_is_refused():
    coded, _ = VALUES["int8"].encode(np.array([1.0, 0.5], dtype=np.float32))
    raised = bytearray(coded)
    assert raised[3] in (63, 64)
    raised[3] = 120
    with pytest.raises(PayloadError, match="level"):
        VALUES["int8"].decode(reader(bytes(raised)), 2)


def test_a_magnitude_beyond_float32_is_refused():
    coded, _ = VALUES["2bit"].encode(np.array([1e30, 1e30, 1e30, 1e33], dtype=np.float32))
    raised = bytearray(coded)
    raised[3] = 255
    VALUES["2bit"].decode(reader(coded), 4)
    raised[1:3] = (0x7F7F).to_bytes(2, "little")
    with pytest.raises(PayloadError, match="float32"):
        VALUES["2bit"].decode(reader(bytes(raised)), 4)


def test_a_large_number_beyond_the_end_is_refused():
    coded, _ = VALUES["2bit"].encode(np.array([1, 1, 1, 1, 1, 9], dtype=np.float32))
    with pytest.raises(PayloadError, match="beyond"):
        VALUES["2bit"].decode(reader(coded), 5)


def test_more_numbers_than_the_codec_keeps_are_refused():
    with pytest.raises(PayloadError, match="at most 4"):
        indices.decode(reader(indices.encode(np.arange(5), 100)), 100, 4)
