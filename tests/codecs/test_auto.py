"""`auto`: any rung follows any other with one residual, its place is in the payload, and the ladder is a ladder."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from lightning_async.codecs import Codec, Ladder, codec, envelope
from lightning_async.codecs.auto import RUNGS
from lightning_async.errors import ConfigError, PayloadError

D = 50_000


def ladder(member: Codec) -> Ladder:
    assert member.ladder is not None
    return member.ladder


def heavy(seed: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_t(3, D).astype(np.float32))


def test_rungs_change_under_one_residual_and_nothing_is_lost():
    member = codec("auto")
    steps, state = ladder(member), member.init(D)
    total, arrived = torch.zeros(D).double(), torch.zeros(D).double()
    for i, rung in enumerate([6, 0, 9, 3, 7, 1, 8, 2, 5, 4, 9]):
        state = steps.to(state, rung)
        payload, state = member.encode(heavy(i), state)
        assert steps.of(payload) == rung == steps.at(state)
        total += heavy(i)
        if i % 3 == 1:
            state = member.fold_back(payload, state)
        else:
            arrived += member.decode(payload, D)
    assert (total - arrived - state["residual"].double()).abs().max() < 1e-5 * total.abs().max()


def test_the_stated_bits_are_the_bits_and_fall_from_rung_to_rung():
    member = codec("auto")
    steps = ladder(member)
    assert len(steps.specs) == len(steps.bits) == len(RUNGS)
    vector, sizes = torch.cat([heavy(i) for i in range(20)]), []
    for rung, bits in enumerate(steps.bits):
        payload, _ = member.encode(vector, steps.to(member.init(len(vector)), rung))
        sizes.append(memoryview(payload).nbytes)
        assert 8 * sizes[-1] / len(vector) == pytest.approx(bits, rel=0.1)
    assert all(a > 1.5 * b for a, b in itertools.pairwise(sizes))


def test_a_sparse_rung_sends_where_the_energy_is():
    """One threshold for all: nothing of the other tensors is sent while one has larger numbers left."""
    vector = heavy(0) + torch.where(torch.arange(D) < 400, 1000.0, 0.0)
    member = codec("auto(start=8)")
    sent = member.decode(member.encode(vector, member.init(D))[0], D)
    assert int((sent[:400] != 0).sum()) == round(0.005 * D)
    assert not sent[400:].any()


@pytest.mark.parametrize("rung", [-1, len(RUNGS)])
def test_a_rung_that_is_none_is_refused(rung):
    member = codec("auto")
    with pytest.raises(ConfigError, match="rung"):
        ladder(member).to(member.init(1), rung)
    with pytest.raises(ConfigError, match="start"):
        codec(f"auto(start={rung})")


def test_a_payload_that_claims_another_rung_is_refused():
    member = codec("auto(start=1)")
    payload = np.frombuffer(bytearray(member.encode(heavy(0), member.init(D))[0]), dtype=np.uint8)
    for rung in (0, 2, 5, len(RUNGS), 255):
        payload[16] = rung
        with pytest.raises(PayloadError):
            member.decode(envelope.seal(payload, 8, D), D)
