"""The codecs at GPT-2 small's size: bits on the wire against entropy, seconds against the obvious way and memory.

Times are CPU seconds of one thread, the best of five; what is compared runs in turn, in this process. One vector is
synthetic and heavy-tailed (Student's t with three degrees of freedom, tensors and rows of different scale), of
124,439,808 numbers; `CODECS_BENCH_D` sets another count. The other, at full count only, is a gradient of GPT-2 small's
shape: one backward on real text, random weights.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lightning_async.codecs import Codec, Payload, blocks, codec
from lightning_async.codecs.selection import kept

GPT2_SMALL = 124_439_808
REPEATS = 5


def rows() -> Iterator[dict[str, Any]]:
    """Wire sizes, then encode and decode times, then dense formats against memory bandwidth; then a real gradient."""
    torch.set_num_threads(1)
    d = int(os.environ.get("CODECS_BENCH_D", GPT2_SMALL))
    vector = heavy(d)
    yield from wire(vector, "synthetic")
    yield from speed(vector, "synthetic")
    yield from dense(vector)
    if d == GPT2_SMALL:
        vector = gradient()
        yield from wire(vector, "GPT-2 small")
        yield from speed(vector, "GPT-2 small")
        del vector
        yield snapshot()


def heavy(d: int) -> Tensor:
    """The vector, made in pieces."""
    rng = np.random.default_rng(0)
    out = np.empty(d, dtype=np.float32)
    scale = np.exp(rng.normal(-6, 0.5, -(-d // 768))).astype(np.float32)
    for low in range(0, d, 768 * 4096):
        part = out[low : low + 768 * 4096]
        chi = np.square(rng.standard_normal((3, part.size), dtype=np.float32)).sum(axis=0)
        part[:] = rng.standard_normal(part.size, dtype=np.float32) / np.sqrt(chi / 3)
        part *= np.repeat(scale[low // 768 : low // 768 + 4096], 768)[: part.size] * np.exp(rng.normal())
    return torch.from_numpy(out)


def gradient(tokens: int = 256) -> Tensor:
    """Of GPT-2 small's shape with random weights, for the text of this file's bytes as tokens: float32 [124439808]."""
    from examples.gpt2.module import SIZES, network

    torch.manual_seed(0)
    model = network(SIZES["small"])
    text = torch.frombuffer(bytearray(Path(__file__).read_bytes()[: tokens + 1]), dtype=torch.uint8).long()
    model(input_ids=text[None], labels=text[None]).loss.backward()
    return torch.cat([p.grad.reshape(-1) for p in model.parameters() if p.grad is not None])


def seconds(*runs: Callable[[], object]) -> list[float]:
    """The best of some turns for each."""
    best = [float("inf")] * len(runs)
    for _ in range(REPEATS):
        for i, run in enumerate(runs):
            start = time.thread_time()
            run()
            best[i] = min(best[i], time.thread_time() - start)
    return best


def entropy(symbols: np.ndarray) -> float:
    """Bits in all symbols under their own frequencies."""
    _, counts = np.unique(symbols, return_counts=True)
    return float(-(counts * np.log2(counts / counts.sum())).sum())


def position_bits(d: int, density: float) -> float:
    """log2 of the number of ways to keep that many of every 4,096."""
    k = kept(4096, density, 4096)
    logs = np.log2(np.arange(1, 4097))
    return d / 4096 * float(logs.sum() - logs[:k].sum() - logs[: 4096 - k].sum())


def value_bits(numbers: np.ndarray, values: str) -> float:
    """Entropy of the symbols that these kept numbers become, without their scales."""
    if values == "2bit":
        starts = np.arange(0, numbers.size, 64)
        size = np.abs(numbers)
        means = np.add.reduceat(size, starts) / np.diff(np.append(starts, size.size))
        return entropy(size > 2 * np.repeat(means, 64)[: size.size]) + numbers.size
    most, block = {"int8": (127, 256), "int4": (7, 64)}[values]
    q, scales = np.empty(numbers.size, np.int8), np.empty(-(-numbers.size // block), "<u2")
    blocks.quantise(numbers, block, most, scales, q)
    return entropy(q)


def wire(vector: Tensor, kind: str) -> Iterator[dict[str, Any]]:
    """Payload sizes against the entropy of what they say; `floor` is what makes the target."""
    d = vector.numel()
    aims = [
        (1 / 64, "2bit", 0.145 * d),
        (0.01, "int8", 2.4e6 * 8 * d / GPT2_SMALL),
        (0.01, "int4", 1.95e6 * 8 * d / GPT2_SMALL),
    ]
    for density, values, aim in aims:
        member = codec(f"error_feedback(topk(density={density}, values='{values}'))")
        state = member.init(d)
        payload, state = member.encode(vector, state)
        kept_ = vector[decoded(member, payload, d)].numpy()
        bits, floor = 8.0 * len(payload), position_bits(d, density) + value_bits(kept_, values)
        yield {
            "bench": f"wire size of {member.spec}, {kind}",
            "ours": round(bits / d, 5),
            "reference": round(floor / d, 5),
            "floor": round(min(1.06, aim / floor), 4) if values == "int8" else round(aim / floor, 4),
            "lower": True,
            "unit": "bit/parameter",
            "ratio": round(bits / floor, 4),
            "bytes": len(payload),
            "aim_bytes": round(aim / 8),
            "d": d,
        }


def decoded(member: Codec, payload: Payload, d: int) -> Tensor:
    assert member.decode_sparse is not None
    return member.decode_sparse(payload, d).indices


def speed(vector: Tensor, kind: str) -> Iterator[dict[str, Any]]:
    """The default top-k against torch.topk on the flat vector with int32 and float32 for what it finds."""
    d = vector.numel()
    k = kept(d, 0.01, 4096)

    def obvious() -> bytes:
        places = vector.abs().topk(k, sorted=False).indices
        return places.to(torch.int32).numpy().tobytes() + vector[places].numpy().tobytes()

    member = codec("error_feedback(topk())")
    states = [member.init(d)]
    member.encode(vector, states[0])

    def ours() -> Payload:
        payload, states[0] = member.encode(vector, states[0])
        return payload

    payload = ours()
    encode, decode, read = seconds(ours, lambda: member.decode(payload, d), lambda: vector.max())
    start = time.thread_time()
    obvious()
    reference = time.thread_time() - start
    passes = {"d": d, "one_read_pass_s": round(read, 4)}
    yield row(f"encode the default topk against torch.topk and plain packing, {kind}", encode, reference, 15.0) | passes
    yield row(f"encode the default topk against 0.30 s, {kind}", encode, 0.30 * d / GPT2_SMALL, 1.0) | passes
    yield row(f"decode the default topk against 0.15 s, {kind}", decode, 0.15 * d / GPT2_SMALL, 1.0) | passes


def dense(vector: Tensor) -> Iterator[dict[str, Any]]:
    """Bytes read and written per second against those of a plain copy."""
    target, d = torch.empty_like(vector), vector.numel()
    for spec in ("fp16", "bf16", "int8", "int4"):
        member = codec(spec)
        payload, _ = member.encode(vector, {})
        moved = 4 * d + len(payload)
        copy, encode, decode = seconds(
            lambda: target.copy_(vector),
            lambda m=member: m.encode(vector, {}),
            lambda m=member, p=payload: m.decode(p, d),
        )
        for what, took in (("encode", encode), ("decode", decode)):
            yield {
                "bench": f"{what} {spec} against memory bandwidth",
                "ours": round(moved / took / 1e9, 3),
                "reference": round(8 * d / copy / 1e9, 3),
                "floor": 0.5,
                "unit": "GB/s",
                "ratio": round(moved / took / (8 * d / copy), 3),
                "d": d,
            }


def snapshot() -> dict[str, Any]:
    """What a whole snapshot takes packed, GPT-2 small's first weights, and the CPU seconds to pack and unpack it."""
    from examples.gpt2.module import SIZES, network

    torch.manual_seed(0)
    vector = torch.cat([p.detach().reshape(-1) for p in network(SIZES["small"]).parameters()])
    member, d = codec("packed"), vector.numel()
    start = time.thread_time()
    payload, _ = member.encode(vector, {})
    packed = time.thread_time()
    member.decode(payload, d)
    size = memoryview(payload).nbytes
    return {
        "bench": "packed snapshot against float32",
        "ours": size,
        "reference": 4 * d,
        "floor": 0.9,
        "lower": True,
        "unit": "bytes",
        "ratio": round(size / (4 * d), 4),
        "encode_s": round(packed - start, 3),
        "decode_s": round(time.thread_time() - packed, 3),
        "d": d,
    }


def row(bench: str, ours: float, reference: float, floor: float) -> dict[str, Any]:
    """A time, where `ratio` says how many times faster we are."""
    ratio = round(reference / ours, 3)
    return {
        "bench": bench,
        "ours": round(ours, 4),
        "reference": round(reference, 4),
        "floor": floor,
        "unit": "s",
        "ratio": ratio,
    }


if __name__ == "__main__":
    for measured in rows():
        print(json.dumps(measured), flush=True)
