"""What every codec promises, over the whole table. A new codec is tested by its row in CASES."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from peak import peak_memory
from safetensors.torch import load, save

from lightning_async.codecs import CODECS, Codec, bind, codec, envelope, kernels
from lightning_async.errors import ConfigError, PayloadError

Bound = Callable[[torch.Tensor], torch.Tensor]
D = 9001


def blockwise(vector: torch.Tensor, block: int, share: float) -> torch.Tensor:
    """Per element: share of its block's largest magnitude, with room for the scale's rounding (2^-7) and its floor."""
    padded = torch.nn.functional.pad(vector.double().abs(), (0, -len(vector) % block)).view(-1, block)
    return (padded.amax(1) * share * (1 + 2**-7)).repeat_interleave(block)[: len(vector)] + 2.0**-120


CASES: dict[str, dict[str, Bound | None]] = {
    "none": {"none": torch.zeros_like},
    "fp16": {"fp16": lambda v: v.abs() * 2**-11 + 2**-25},
    "bf16": {"bf16": lambda v: v.abs() * 2**-8 + 1e-40},
    "int8": {
        "int8": lambda v: blockwise(v, 256, 0.5 / 127),
        "int8(block=64, seed=5)": lambda v: blockwise(v, 64, 1.0 / 127),
    },
    "int4": {"int4": lambda v: blockwise(v, 64, 0.5 / 7), "int4(seed=5)": lambda v: blockwise(v, 64, 1.0 / 7)},
    "topk": {
        "topk": None,
        "topk(density=0.015625, values='2bit')": None,
        "topk(density=0.3, values='int8', chunk=128)": None,
        "topk(density=0.02, values='bf16', chunk=None)": None,
        "topk(density=1.0, values='bf16')": lambda v: v.abs() * 2**-8 + 1e-40,
    },
    "randomk": {"randomk": None, "randomk(density=1.0)": torch.zeros_like},
    "signsgd": {"signsgd": None},
    "powersgd": {"powersgd(rank=2)": None},
    "chain": {
        "chain": torch.zeros_like,
        "chain(topk(density=0.1), int8)": None,
        "chain(powersgd(2), bf16)": None,
        "chain(randomk(0.1, seed=2), int4)": None,
        "chain(topk(density=1.0), none)": torch.zeros_like,
    },
    "error_feedback": {
        "error_feedback": None,
        "error_feedback(topk(density=0.015625, values='2bit'), beta=0.95)": None,
        "error_feedback(int4(seed=1))": lambda v: blockwise(v, 64, 1.0 / 7),
        "error_feedback(powersgd(2))": None,
        "error_feedback(by_size(topk(0.05), bf16, below=300))": None,
    },
    "auto": {"auto": None} | {f"auto(start={rung})": None for rung in (0, 2, 3, 9)},
    "by_size": {"by_size": None, "by_size(int8, none, below=100000)": torch.zeros_like},
    "either": {
        "either": None,
        "either(topk(density=1.0, values='int8'), int4)": None,
        "either(topk(density=1.0, values='bf16'), bf16)": lambda v: v.abs() * 2**-8 + 1e-40,
        "error_feedback(either(topk(density=0.05), int4))": None,
    },
    "packed": {"packed": torch.zeros_like},
}
SPECS = [spec for specs in CASES.values() for spec in specs]
BOUNDED = [(spec, bound) for specs in CASES.values() for spec, bound in specs.items() if bound is not None]
WITH_FEEDBACK = [spec for spec in SPECS if codec(spec).fold_back is not None]
SEALED = [spec for spec in SPECS if spec not in ("none", "fp16", "bf16", "chain")]


def heavy(d: int, seed: int = 0) -> torch.Tensor:
    """Heavy-tailed numbers whose scale changes every 500."""
    rng = np.random.default_rng(seed)
    scale = np.repeat(np.exp(rng.normal(-4, 1, d // 500 + 1)), 500)[:d]
    return torch.from_numpy((rng.standard_t(3, d) * scale).astype(np.float32))


VECTORS = {
    "empty": torch.zeros(0),
    "one": torch.tensor([-0.25]),
    "zeros": torch.zeros(300),
    "equal": torch.full((5000,), -0.125),
    "denormal": heavy(700) * 1e-38,
    "tiny and large": torch.cat([heavy(4096) * 1e-20, heavy(5000) * 1e3]),
    "mostly zeros": heavy(20_000) * (torch.arange(20_000) % 997 == 0),
    "heavy": heavy(D),
}


def sent(member: Codec, vector: torch.Tensor) -> torch.Tensor:
    payload, _ = member.encode(vector, member.init(len(vector)))
    assert memoryview(payload).nbytes <= member.max_bytes(len(vector))
    return member.decode(bytes(payload), len(vector))


def test_every_codec_is_held_to_this():
    assert set(CASES) == set(CODECS)


@pytest.mark.parametrize("name", CODECS)
def test_every_factory_works_without_arguments(name):
    assert len(sent(CODECS[name](), heavy(D))) == D


@pytest.mark.parametrize("spec", SPECS)
def test_the_spec_is_the_codec(spec):
    member = codec(spec)
    assert codec(member.spec) == member
    assert codec(member.spec).spec == member.spec
    assert codec(member) is member
    assert member.lossless == (member.spec in ("none", "packed"))


@pytest.mark.parametrize("vector", VECTORS.values(), ids=VECTORS)
@pytest.mark.parametrize("spec", SPECS)
def test_round_trip(spec, vector):
    """A finite float32 vector of the right length comes back, no longer than what went in but for rounding."""
    got = sent(codec(spec), vector)
    assert got.shape == vector.shape
    assert got.dtype == torch.float32
    assert torch.isfinite(got).all()
    assert got.double().norm() <= vector.double().norm() * (1 + 1 / 7) + 1e-35


@pytest.mark.parametrize("vector", VECTORS.values(), ids=VECTORS)
@pytest.mark.parametrize(("spec", "bound"), BOUNDED)
def test_the_stated_error_bound_is_kept(spec, bound, vector):
    error = (sent(codec(spec), vector).double() - vector.double()).abs()
    assert (error <= bound(vector).double() * (1 + 1e-6)).all()


@pytest.mark.parametrize("spec", SPECS)
def test_what_comes_back_is_nearer_than_nothing(spec):
    vector = heavy(D)
    assert (sent(codec(spec), vector) - vector).norm() < vector.norm()


@pytest.mark.parametrize("spec", SPECS)
def test_the_sparse_form_is_the_dense_one(spec):
    member, vector = codec(spec), heavy(D)
    if member.decode_sparse is None:
        return
    payload, _ = member.encode(vector, member.init(D))
    sparse = member.decode_sparse(payload, D)
    assert torch.equal(sparse.dense(), member.decode(payload, D))
    assert (sparse.indices.diff() > 0).all()


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("spec", SPECS)
def test_what_is_not_finite_is_refused_and_the_state_stays(spec, bad):
    member, vector = codec(spec), heavy(D)
    _, state = member.encode(vector, member.init(D))
    before = {name: tensor.clone() for name, tensor in state.items()}
    broken = vector.clone()
    broken[D // 2] = bad
    with pytest.raises(ConfigError, match="NaN or infinity"):
        member.encode(broken, state)
    assert all(torch.equal(state[name], before[name]) for name in before)


@pytest.mark.parametrize("spec", SPECS)
def test_another_form_is_refused(spec):
    member = codec(spec)
    for wrong in (torch.zeros(4, dtype=torch.float64), torch.zeros(2, 2), torch.zeros(8)[::2]):
        with pytest.raises(ConfigError, match="float32 vector"):
            member.encode(wrong, member.init(4))


@pytest.mark.parametrize("spec", SPECS)
def test_a_saved_state_continues_with_the_same_payloads(spec):
    member = codec(spec)

    def payloads(through_a_file: bool) -> list[bytes]:
        state, made = member.init(D), []
        for i in range(4):
            payload, state = member.encode(heavy(D, i), state)
            made.append(bytes(payload))
            if through_a_file and state:
                state = load(save(state))
        return made

    assert payloads(True) == payloads(False)


@pytest.mark.parametrize("spec", SPECS)
def test_numba_and_numpy_write_the_same_bytes(spec, monkeypatch):
    def run() -> tuple[list[bytes], list[torch.Tensor], dict[str, torch.Tensor]]:
        member, made, back = codec(spec), [], []
        state = member.init(D)
        for i in range(3):
            payload, state = member.encode(heavy(D, i), state)
            made.append(bytes(payload))
            back.append(member.decode(payload, D).clone())
        return made, back, state

    if kernels.compiled() is None:
        pytest.skip("numba is not installed")
    fast = run()
    monkeypatch.setattr(kernels, "compiled", lambda: None)
    monkeypatch.setattr(kernels, "compiled_select", lambda: None)
    slow = run()
    assert fast[0] == slow[0]
    assert all(map(torch.equal, fast[1], slow[1]))
    assert all(torch.equal(fast[2][name], slow[2][name]) for name in fast[2])


@pytest.mark.parametrize("spec", SPECS)
def test_the_global_dtype_and_grad_mode_do_not_matter(spec):
    member, vector = codec(spec), heavy(D)
    expected, _ = member.encode(vector, member.init(D))
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.inference_mode():
            payload, state = member.encode(vector.clone(), member.init(D))
        decoded = member.decode(payload, D)
    finally:
        torch.set_default_dtype(torch.float32)
    leaf = vector.clone().requires_grad_()
    assert bytes(payload) == bytes(expected) == bytes(member.encode(leaf, member.init(D))[0])
    assert decoded.dtype == torch.float32
    assert not any(tensor.requires_grad for tensor in state.values())


@pytest.mark.parametrize("spec", WITH_FEEDBACK)
def test_nothing_is_lost(spec):
    """With beta = 1, decoded payloads + residual = inputs, up to float rounding; a refused payload goes back in."""
    member = codec(spec)
    if "beta=0.95" in spec:
        return
    state, total, arrived = member.init(D), torch.zeros(D).double(), torch.zeros(D).double()
    for i in range(20):
        vector = heavy(D, i)
        payload, state = member.encode(vector, state)
        total += vector
        if i % 3 == 1:
            state = member.fold_back(payload, state)
        else:
            arrived += member.decode(payload, D)
    missing = total - arrived - state["residual"].double()
    assert missing.abs().max() <= 1e-5 * total.abs().max()
    assert arrived.norm() > 0.1 * total.norm()


@pytest.mark.parametrize("spec", WITH_FEEDBACK)
def test_the_residual_stays_where_it_is(spec):
    member = codec(spec)
    state = member.init(D)
    place = state["residual"].data_ptr()
    payload, state = member.encode(heavy(D), state)
    assert state["residual"].data_ptr() == place
    assert member.fold_back(payload, state)["residual"].data_ptr() == place


@pytest.mark.parametrize("spec", SPECS)
def test_bound_to_shapes(spec):
    shapes = ((60, 50), (50,), (20, 10, 10), (7,), (3000,))
    d = sum(int(np.prod(shape)) for shape in shapes)
    member = bind(codec(spec), shapes)
    assert member.spec == codec(spec).spec
    assert len(sent(member, heavy(d))) == d
    if member.bind is not None:
        with pytest.raises(ConfigError, match="bind it"):
            member.encode(heavy(d - 1), member.init(d - 1))


@pytest.mark.parametrize("spec", SPECS)
def test_another_length_is_refused(spec):
    member = codec(spec)
    payload, _ = member.encode(heavy(D), member.init(D))
    for wrong in (bytes(payload)[:-1], bytes(payload) + b"\0", bytes(payload)[: len(payload) // 2], b"", bytes(16)):
        with pytest.raises(PayloadError):
            member.decode(wrong, D)
    with pytest.raises(PayloadError):
        member.decode(payload, D + 1)
    with pytest.raises(PayloadError):
        member.decode(payload, 2**40 + 1)


@pytest.mark.parametrize("spec", SEALED)
def test_every_flipped_bit_is_found(spec):
    member = codec(spec)
    payload = bytearray(member.encode(heavy(300), member.init(300))[0])
    for place in range(0, 8 * len(payload), 1 + len(payload) // 40):
        payload[place // 8] ^= 1 << place % 8
        with pytest.raises(PayloadError):
            member.decode(payload, 300)
        payload[place // 8] ^= 1 << place % 8
    assert len(member.decode(payload, 300)) == 300


@pytest.mark.parametrize("spec", SPECS)
@given(data=st.binary(max_size=300), d=st.integers(0, 600))
def test_any_bytes_are_an_error_or_a_vector(spec, data, d):
    check_hostile(codec(spec), data, d)


@pytest.mark.parametrize("spec", SEALED)
@given(seed=st.integers(0, 99), edits=st.lists(st.tuples(st.integers(0, 2**20), st.integers(0, 255)), max_size=6))
def test_altered_and_sealed_again_is_an_error_or_a_vector(spec, seed, edits):
    """As a hostile worker would: the digest is right, the numbers below it are not."""
    member = codec(spec)
    payload = np.frombuffer(bytearray(member.encode(heavy(500, seed), member.init(500))[0]), dtype=np.uint8)
    for place, value in edits:
        payload[16 + place % (len(payload) - 16)] = value
    check_hostile(member, envelope.seal(payload, int(payload[0]), 500), 500)


def check_hostile(member: Codec, data: bytes | memoryview, d: int) -> None:
    try:
        vector = member.decode(data, d)
    except PayloadError:
        return
    assert vector.shape == (d,)
    assert torch.isfinite(vector).all()


@pytest.mark.parametrize("spec", SEALED)
def test_decoding_lies_takes_bounded_memory(spec):
    """A short payload that declares huge counts allocates no more than the vector, a few times."""
    member, d = codec(spec), 100_000
    payload = np.frombuffer(bytearray(member.encode(heavy(d), member.init(d))[0]), dtype=np.uint8)
    member.decode(payload.data, d)
    for place in range(16, min(60, len(payload) - 8)):
        lying = payload.copy()
        lying[place : place + 8] = 255
        with peak_memory() as peak_bytes:
            check_hostile(member, envelope.seal(lying, int(lying[0]), d), d)
            assert peak_bytes() < 16 * 4 * d
