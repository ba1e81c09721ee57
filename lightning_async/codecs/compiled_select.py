"""Top-k per chunk compiled by numba, fused with the error-feedback update: one pass over memory.

A chunk of magnitudes, as integers, stays in the first-level cache. Counting those at or above a threshold is a few
hundred vector instructions, so the threshold is searched by counting: from the chunk before's, by secant steps in the
logarithm, to one that leaves k to 1.5 k candidates; among those few it is then made exact. Same rule as
selection.py: the k largest magnitudes, of equal ones the first, zeros never. Only kernels.py's reader imports this.
"""

from __future__ import annotations

import numpy as np

from lightning_async.codecs.compiled import MAGNITUDE, jit
from lightning_async.codecs.envelope import Array

BEYOND = np.int32(0x7FFFFFFF)
OCTAVE = 1 << 23
TAIL = 3.0
SECANTS = 10
STRIP = 4096


@jit
def select(
    vector: Array,
    target: Array,
    beta: np.float32,
    fuse: bool,
    chunk: int,
    k: int,
    last: int,
    indices: Array,
    numbers: Array,
) -> int:
    """Where `fuse`, target <- beta * target + vector first. Writes the kept positions and what stands there in target,
    while that is in the cache; returns how many they are."""
    bits = target.view(np.int32)
    buffer = np.empty(chunk, dtype=np.int32)
    places = np.empty(chunk + 1, dtype=np.int32)
    candidates = np.empty(chunk, dtype=np.int32)
    flags = np.empty(chunk + 8, dtype=np.uint8)[: (chunk + 7) // 8 * 8]
    n, guess = 0, np.int32(0x3F800000)
    for low in range(0, target.size, chunk):
        high = min(low + chunk, target.size)
        if fuse:
            _accumulate(vector[low:high], beta, target[low:high])
        size = high - low
        _magnitudes(bits[low:high], buffer[:size])
        keep = k if size == chunk else last
        floor = _threshold(buffer[:size], keep, guess)
        guess = floor if floor > 1 else guess
        count = _collect(buffer[:size], floor, flags, places, candidates)
        before = n
        n = _emit(places[:count], candidates[:count], keep, floor, low, indices, n)
        for i in range(before, n):
            numbers[i] = target[indices[i]]
    return n


@jit
def collect(x: Array, threshold: np.int32, indices: Array) -> int:
    """Writes the positions whose magnitude's bits reach `threshold`; returns their number, or -1 if they do not fit."""
    bits = x.view(np.int32)
    buffer = np.empty(STRIP, dtype=np.int32)
    places = np.empty(STRIP + 1, dtype=np.int32)
    candidates = np.empty(STRIP, dtype=np.int32)
    flags = np.empty(STRIP, dtype=np.uint8)
    n = 0
    for low in range(0, x.size, STRIP):
        size = min(STRIP, x.size - low)
        _magnitudes(bits[low : low + size], buffer[:size])
        count = _collect(buffer[:size], threshold, flags, places, candidates)
        if n + count > indices.size:
            return -1
        for i in range(count):
            indices[n + i] = low + places[i]
        n += count
    return n


@jit
def _accumulate(vector: Array, beta: np.float32, target: Array) -> None:
    for i in range(vector.size):
        target[i] = target[i] * beta + vector[i]


@jit
def _magnitudes(bits: Array, out: Array) -> None:
    for i in range(bits.size):
        out[i] = np.int32(bits[i] & MAGNITUDE)


@jit
def _count(sizes: Array, threshold: np.int32) -> np.int32:
    count: np.int32 = np.int32(0)
    for i in range(sizes.size):
        count += np.int32(sizes[i] >= threshold)
    return count


@jit
def _threshold(sizes: Array, keep: int, guess: np.int32) -> np.int32:
    """A threshold that keep..1.5 keep reach, or the greatest that at least `keep` do, or 1 where fewer are not zero."""
    low, high, t = np.int32(0), BEYOND, guess
    for step in range(SECANTS + 32):
        count = _count(sizes, t)
        if keep <= count <= keep + keep // 2:
            return t
        if count < keep:
            high = t
        else:
            low = t
        if high - low <= 1:
            break
        near = np.int64(t) + np.int64(np.log2((count + 0.3) / (keep * 1.25)) * OCTAVE / TAIL)
        t = np.int32(max(low + 1, min(high - 1, near)) if step < SECANTS else low + (high - low) // 2)
    return max(low, np.int32(1))


@jit
def _collect(sizes: Array, threshold: np.int32, flags: Array, places: Array, candidates: Array) -> int:
    """Places and sizes that reach the threshold. Every place is written and kept only if flagged: no branch to miss."""
    n = 0
    words = _flag(sizes, threshold, flags)
    for word in range(words.size):
        if words[word]:
            for i in range(8 * word, 8 * word + 8):
                places[n] = i
                n += np.int64(flags[i])
    for i in range(n):
        candidates[i] = sizes[places[i]]
    return n


@jit
def _flag(sizes: Array, threshold: np.int32, flags: Array) -> Array:
    """A byte for each that reaches the threshold; eight of them at a time as one number, which is rarely not 0."""
    used = (sizes.size + 7) // 8
    flags[8 * used - 8 : 8 * used] = 0
    for i in range(sizes.size):
        flags[i] = np.uint8(np.int32(sizes[i]) >= threshold)
    words: Array = flags.view(np.uint64)[:used]
    return words


@jit
def _emit(places: Array, candidates: Array, keep: int, floor: np.int32, first: int, indices: Array, n: int) -> int:
    """Appends first + the places of the `keep` largest candidates, of equal ones the first."""
    low, high = floor, BEYOND
    ties = places.size
    if places.size > keep:
        while high - low > 1:
            middle = np.int32(low + (high - low) // 2)
            count = _count(candidates, middle)
            if count >= keep:
                low = middle
            else:
                high = middle
            if count == keep:
                break
        ties = keep - _count(candidates, np.int32(low + 1))
    for i in range(places.size):
        if candidates[i] > low or (candidates[i] == low and ties > 0):
            ties -= candidates[i] == low
            indices[n] = first + places[i]
            n += 1
    return n
