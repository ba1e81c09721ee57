"""Writes tests/vectors/codecs.json: `python tests/codecs/make_vectors.py`. A change of it is a change of the format.

The file: `input` is a float32 vector; each of `cases` has a codec's spec, the payloads of that vector, encoded twice
with one state, and what they decode to. Bytes are little-endian, in hexadecimal. Of `packed`, another encoder's bytes
may differ: zlib streams of one content do.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch

from lightning_async.codecs import codec

FILE = Path(__file__).parents[1] / "vectors" / "codecs.json"
D = 301
SPECS = [
    "none",
    "fp16",
    "bf16",
    "int8(block=64)",
    "int8(block=64, seed=7)",
    "int4(block=64)",
    "signsgd(block=128)",
    "randomk(density=0.1, seed=3)",
    "chain(randomk(density=0.1), fp16)",
    "topk(density=0.1, values='fp16', chunk=128)",
    "topk(density=0.1, values='bf16', chunk=None)",
    "topk(density=0.5, values='int8', chunk=256)",
    "topk(density=0.3, values='int4', chunk=128)",
    "topk(density=0.3, values='2bit', chunk=128)",
    "chain(topk(density=0.2, chunk=64), int8(block=16))",
    "error_feedback(topk(density=0.05, values='2bit', chunk=64), beta=0.95)",
    "by_size(int4, none, below=1000)",
    "auto(start=0)",
    "auto(start=3)",
    "auto(start=8)",
    "either(topk(density=0.1, values='int8', chunk=64), int8(block=64))",
    "either(topk(density=1.0, values='int8', chunk=64), int4(block=64))",
    "packed",
]


def hexadecimal(data: object) -> str:
    return bytes(memoryview(data)).hex()  # type: ignore[arg-type]


def case(spec: str, vector: torch.Tensor) -> dict[str, object]:
    member = codec(spec)
    state, payloads, decoded = member.init(len(vector)), [], []
    for _ in range(2):
        payload, state = member.encode(vector, state)
        payloads.append(hexadecimal(payload))
        decoded.append(hexadecimal(member.decode(payload, len(vector)).numpy().data.cast("B")))
    return {"spec": spec, "payloads": payloads, "decoded": decoded}


def document() -> dict[str, object]:
    numbers = np.random.Generator(np.random.PCG64(1)).standard_cauchy(D).astype(np.float32) / np.float32(128)
    numbers[40:90] = 0
    vector = torch.from_numpy(numbers)
    return {"d": D, "input": hexadecimal(numbers.data.cast("B")), "cases": [case(spec, vector) for spec in SPECS]}


if __name__ == "__main__":
    FILE.write_text(json.dumps(document(), indent=1) + "\n")
