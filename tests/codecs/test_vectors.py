"""The byte format stands still: the payloads in tests/vectors/codecs.json, with numba and without."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from lightning_async.codecs import codec, kernels

DOCUMENT = json.loads((Path(__file__).parents[1] / "vectors" / "codecs.json").read_text())
CASES = DOCUMENT["cases"]


@pytest.mark.parametrize("case", CASES, ids=[case["spec"] for case in CASES])
@pytest.mark.parametrize("path", ["numba", "numpy"])
def test_payloads_and_what_they_decode_to(case, path, monkeypatch):
    if path == "numpy":
        monkeypatch.setattr(kernels, "compiled", lambda: None)
        monkeypatch.setattr(kernels, "compiled_select", lambda: None)
    vector = torch.from_numpy(np.frombuffer(bytearray.fromhex(DOCUMENT["input"]), dtype="<f4"))
    member = codec(case["spec"])
    state = member.init(DOCUMENT["d"])
    for expected, decoded in zip(case["payloads"], case["decoded"], strict=True):
        payload, state = member.encode(vector, state)
        if case["spec"] == "packed":  # zlib's versions deflate differently, and inflate alike
            assert torch.equal(member.decode(payload, DOCUMENT["d"]), vector)
        else:
            assert bytes(payload).hex() == expected
        assert member.decode(bytes.fromhex(expected), DOCUMENT["d"]).numpy().tobytes().hex() == decoded
