"""Memory: `none` copies nothing, and top-k with feedback holds no second vector."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import torch

from lightning_async.codecs import codec
from lightning_async.codecs.envelope import digest


def test_none_is_a_view_in_both_directions():
    member, vector = codec("none"), torch.randn(1000)
    payload, _ = member.encode(vector, {})
    assert np.frombuffer(payload, dtype=np.uint8).ctypes.data == vector.data_ptr()
    arrived = bytes(payload)
    assert member.decode(arrived, 1000).data_ptr() == np.frombuffer(arrived, dtype=np.uint8).ctypes.data


def test_a_decoded_view_keeps_its_payload_alive():
    member = codec("none")
    decoded = member.decode(bytes(memoryview(np.full(50_000, 2.5, dtype=np.float32))), 50_000)
    _ = [bytes(200_000) for _ in range(20)]
    assert (decoded == 2.5).all()


def test_a_payload_at_an_odd_address_decodes():
    for name in ("none", "fp16", "int8", "topk"):
        member, vector = codec(name), torch.randn(999)
        payload, _ = member.encode(vector, member.init(999))
        moved = memoryview(b"x" + bytes(payload))[1:]
        assert torch.equal(member.decode(moved, 999), member.decode(payload, 999))


def test_feedback_of_topk_holds_no_second_vector():
    d = 16_000_000
    member, vector = codec("error_feedback"), torch.randn(d)
    state, grown_bytes = member.encode(vector, member.init(d))[1], []
    for _ in range(3):  # the system may count what is not ours in one of them, not in all
        Path("/proc/self/clear_refs").write_text("5")
        before = peak_bytes()
        state = member.encode(vector, state)[1]
        grown_bytes.append(peak_bytes() - before)
    assert min(grown_bytes) < d, grown_bytes


def peak_bytes() -> int:
    """The most resident memory since the last time that 5 was written to clear_refs."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return 1024 * int(line.split()[1])


def test_the_digest_sees_every_bit_and_the_length():
    body = np.random.default_rng(0).integers(0, 256, 9000).astype(np.uint8)
    seen = {digest(b"", body), digest(b"x", body), digest(b"", body[:-1]), digest(b"", np.append(body, np.uint8(0)))}
    for place in range(0, 72_000, 997):
        changed = body.copy()
        changed[place // 8] ^= 1 << place % 8
        seen.add(digest(b"", changed))
    assert len(seen) == 4 + len(range(0, 72_000, 997))


def test_a_run_without_compression_does_not_load_numba() -> None:
    """It takes half a second and 100 MB: more than the whole of a small worker."""
    script = (
        "import sys, torch\n"
        "from lightning_async.codecs import codec\n"
        "none = codec('none')\n"
        "payload, _ = none.encode(torch.ones(3000), none.init(3000))\n"
        "none.decode(payload, 3000)\n"
        "assert 'numba' not in sys.modules, 'numba was loaded'\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=120)
