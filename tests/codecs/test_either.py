"""`either`: sparse where a few numbers carry much, dense where as much would take more bytes in sparse payloads."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lightning_async.codecs import codec, either, envelope, int8, topk
from lightning_async.errors import ConfigError, PayloadError

D = 40_960
SPARSE, DENSE = 0, 1


def which(payload: bytes) -> int:
    return payload[envelope.HEADER_BYTES]


def encoded(vector: torch.Tensor) -> bytes:
    return bytes(either().encode(vector, {})[0])


def heavy(degrees: float = 3.0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(0).standard_t(degrees, D).astype(np.float32))


def flat() -> torch.Tensor:
    """Either sign, 10 to 11 in size."""
    numbers = torch.rand(D, generator=torch.Generator().manual_seed(1))
    return (10 + numbers) * torch.sign(heavy())


@pytest.mark.parametrize(
    "vector", [heavy(), torch.randn(D, generator=torch.Generator().manual_seed(0)), torch.zeros(D)]
)
def test_gradients_and_nothing_go_out_sparse(vector: torch.Tensor) -> None:
    payload = encoded(vector)
    assert which(payload) == SPARSE
    inner = topk(density=0.05, values="int8").encode(vector, {})[0]
    assert payload[envelope.HEADER_BYTES + 8 :] == bytes(inner)


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e25])
def test_numbers_of_about_one_size_go_out_dense(scale: float) -> None:
    """Forty sparse payloads would take 2 bytes a number until a tenth of the energy is left; one dense takes 1.01."""
    vector = flat() * scale
    payload = encoded(vector)
    assert which(payload) == DENSE
    assert payload[envelope.HEADER_BYTES + 8 :] == bytes(int8().encode(vector, {})[0])


def test_the_choice_is_made_for_each_vector_and_what_was_left_is_in_the_next() -> None:
    published, true, chosen = torch.zeros(D), torch.zeros(D), []
    for change in (heavy(), flat(), heavy(), flat()):
        true += change
        payload, _ = either().encode(true - published, {})
        published += either().decode(payload, D)
        chosen.append(which(bytes(payload)))
    assert chosen == [SPARSE, DENSE, SPARSE, DENSE]
    assert float((true - published).norm()) < 0.01 * float(true.norm())


def test_codecs_with_a_state_are_refused() -> None:
    for text in ("either(error_feedback(topk), int8)", "either(topk, int8(seed=1))", "either(randomk, int8)"):
        with pytest.raises(ConfigError, match="state"):
            codec(text)


@pytest.mark.parametrize("claim", [1, 2, 255])
def test_a_payload_that_claims_to_be_the_other_is_refused(claim: int) -> None:
    payload = np.frombuffer(bytearray(encoded(heavy())), dtype=np.uint8)
    payload[envelope.HEADER_BYTES] = claim
    with pytest.raises(PayloadError):
        either().decode(envelope.seal(payload, 9, D), D)
