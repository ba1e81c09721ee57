"""What a delta download costs the server: 32 workers that hold 32 different versions of GPT-2 small's parameters.

Each version is encoded once, whoever asks for it; what a worker adds is the copying of frames into its socket. Times
are CPU seconds of one thread. `BENCH_DOWNLOAD_D` sets another number of parameters.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from typing import Any

import torch

from lightning_async.codecs import Codec, State, codec
from lightning_async.layout import read_manifest
from lightning_async.server.store import Store

GPT2_SMALL = 124_439_808
WORKERS = 32
SPEC = "topk(density=0.05, values='int8')"


def rows() -> Iterator[dict[str, Any]]:
    """Encodings of a version, and the CPU time of answering 32 workers against 1."""
    torch.set_num_threads(1)
    d = int(os.environ.get("BENCH_DOWNLOAD_D", GPT2_SMALL // 16))
    encodings: list[int] = []
    store = Store(read_manifest([["w", [d], "float32", "parameter"]]), _counted(codec(SPEC), encodings))
    store.start(torch.zeros(d), torch.empty(0))
    step = torch.randn(d, generator=torch.Generator().manual_seed(0)).pow_(3).mul_(1e-3)
    publish_s = 0.0
    for _ in range(WORKERS):
        start = time.thread_time()
        store.advance(lambda parameters: parameters.add_(step.roll(1)))
        publish_s += time.thread_time() - start
    asked = range(store.version - WORKERS, store.version)
    one_s, all_s = _seconds(store, asked[-1:]), _seconds(store, asked)
    answers = [store.answer(have) for have in asked]
    forms = [answer.form for answer in answers]
    shared = len({id(frame) for answer in answers for frame in answer.payload[:-1] if answer.form == "deltas"})
    common = {"d": d, "deltas": forms.count("deltas"), "snapshots": forms.count("snapshot")}
    yield {
        "bench": f"encodings of {WORKERS} versions for {WORKERS} workers that hold different ones",
        "ours": len(encodings),
        "reference": sum(store.version - have for have in asked),
        "floor": 1.0,
        "unit": "encodings",
        "ratio": round(WORKERS / len(encodings), 3),
        "distinct_frames": shared,
        **common,
    }
    yield {
        "bench": f"answering {WORKERS} workers at {WORKERS} versions against making one version",
        "ours": round(all_s, 6),
        "reference": round(publish_s / WORKERS, 6),
        "floor": 0.05,
        "lower": True,
        "unit": "CPU s",
        "ratio": round(all_s / (publish_s / WORKERS), 5),
        "one_worker_s": round(one_s, 6),
        **common,
    }


def _counted(plain: Codec, encodings: list[int]) -> Codec:
    """`plain`, which notes each encoding."""

    def encode(vector: torch.Tensor, state: State) -> Any:
        encodings.append(vector.numel())
        return plain.encode(vector, state)

    return Codec(spec=plain.spec, init=plain.init, encode=encode, decode=plain.decode, max_bytes=plain.max_bytes)


def _seconds(store: Store, asked: range) -> float:
    """CPU time of one answer to each, after the first, which computes what all of this version share."""
    for have in asked:
        store.answer(have)
    start = time.thread_time()
    for have in asked:
        store.answer(have)
    return time.thread_time() - start
