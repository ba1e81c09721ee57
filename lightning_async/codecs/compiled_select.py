"""Top-k per chunk compiled by numba, fused with the error-feedback update: one pass over memory.

A chunk stays in the first-level cache. While it is updated, the largest magnitude of each of some hundred groups
(every G-th number) is taken, which costs no pass of its own. The k-th largest of these tops is reached by at least k
numbers, and by few more, because groups rarely hold two of the largest; so one more look at the chunk, 64 numbers to a
word of bits, finds k and a handful of candidates, among which the threshold is made exact. Same rule as selection.py:
the k largest magnitudes, of equal ones the first, zeros never. Only kernels.py's reader imports this.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import numpy as np
from numba import types
from numba.core import cgutils as _cgutils
from numba.extending import intrinsic as _intrinsic

from lightning_async.codecs.compiled import MAGNITUDE, jit
from lightning_async.codecs.envelope import Array

BEYOND = np.int32(0x7FFFFFFF)
OCTAVE = 1 << 23
TAIL = 2.5  # of the logarithm of how many reach a threshold, per octave of it: heavy-tailed gradients
SECANTS = 8
NEAR = 1 << 13  # thresholds this close to each other, 1 / 1024 of themselves, are as good
GROUPS_PER_KEPT = 4
STRIP = 4096
WORD = 64
LINE = 16  # numbers in a line of the cache
AHEAD = 24

llvm: Any = _cgutils  # untyped, like what it makes
intrinsic = cast(Callable[[Callable[..., Any]], Callable[..., Any]], _intrinsic)


@intrinsic
def _reaching(context: Any, bits: Any, at: Any, threshold: Any) -> Any:
    """For 64 int32 from `bits[at]` on: bit i of the result is set where bits[at + i] without its sign reaches
    `threshold`. LLVM makes 8 to 16 comparisons an instruction of it, which it does not of a loop that packs bits."""
    lanes = llvm.ir.VectorType(llvm.ir.IntType(32), WORD)

    def emitted(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        array = llvm.create_struct_proxy(signature.args[0])(context, builder, args[0])
        place = builder.bitcast(builder.gep(array.data, [args[1]]), lanes.as_pointer())
        sizes = builder.and_(builder.load(place, align=4), llvm.ir.Constant(lanes, [0x7FFFFFFF] * WORD))
        blank = llvm.ir.Constant(lanes, llvm.ir.Undefined)
        one = builder.insert_element(blank, args[2], llvm.ir.Constant(llvm.ir.IntType(32), 0))
        return builder.bitcast(
            builder.icmp_signed(">=", sizes, builder.shuffle_vector(one, blank, llvm.ir.Constant(lanes, [0] * WORD))),
            llvm.ir.IntType(WORD),
        )

    return types.uint64(bits, types.int64, types.int32), emitted


@intrinsic
def _lowest(context: Any, word: Any) -> Any:
    """The position of the lowest bit of a word that is not 0."""

    def emitted(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.cttz(args[0], llvm.ir.Constant(llvm.ir.IntType(1), 1))

    return types.int64(types.uint64), emitted


@intrinsic
def _fetch(context: Any, array: Any, at: Any) -> Any:
    """Bring the line of memory where `array[at]` lies towards the core; beyond the array's end it does nothing."""

    def emitted(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        i32, pointer = llvm.ir.IntType(32), llvm.ir.IntType(8).as_pointer()
        form = llvm.ir.FunctionType(llvm.ir.VoidType(), [pointer, i32, i32, i32])
        prefetch = llvm.get_or_insert_function(builder.module, form, "llvm.prefetch.p0i8")
        place = builder.gep(llvm.create_struct_proxy(signature.args[0])(context, builder, args[0]).data, [args[1]])
        builder.call(prefetch, [builder.bitcast(place, pointer), i32(0), i32(3), i32(1)])
        return context.get_dummy_value()

    return types.void(array, types.int64), emitted


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
    tops = np.empty(_groups(chunk, k), dtype=np.int32)
    places = np.empty(chunk, dtype=np.int32)
    candidates = np.empty(chunk, dtype=np.int32)
    n, guess = 0, np.int32(0x3F800000)
    for low in range(0, target.size, chunk):
        high = min(low + chunk, target.size)
        keep = k if high - low == chunk else last
        tops[:] = 0
        for row in range(low, high, tops.size):
            end = min(row + tops.size, high)
            if fuse:
                _accumulate(vector[row:end], beta, target[row:end], tops)
            else:
                _raise(bits[row:end], tops)
            _fetch_half(vector, target, high + (row - low) // 2, tops.size)
        floor = _threshold(tops, keep, guess)
        guess = floor if floor > 1 else guess
        count = _collect(bits[low:high], floor, places, vector, target, high + chunk // 2)
        for i in range(count):
            candidates[i] = bits[low + places[i]] & MAGNITUDE
        before = n
        n = _emit(places[:count], candidates[:count], keep, floor, low, indices, n)
        for i in range(before, n):
            numbers[i] = target[indices[i]]
    return n


@jit
def collect(x: Array, threshold: np.int32, indices: Array) -> int:
    """Writes the positions whose magnitude's bits reach `threshold`; returns their number, or -1 if they do not fit."""
    bits = x.view(np.int32)
    places = np.empty(STRIP, dtype=np.int32)
    n = 0
    for low in range(0, x.size, STRIP):
        count = _collect(bits[low : min(low + STRIP, x.size)], threshold, places, x, x, low + STRIP)
        if n + count > indices.size:
            return -1
        for i in range(count):
            indices[n + i] = low + places[i]
        n += count
    return n


@jit
def put_difference(target: Array, places: Array, numbers: Array, sent: Array) -> None:
    """target[places] = numbers - sent. Nearly each lies in a line of its own, which is fetched some places ahead."""
    for i in range(places.size):
        _fetch(target, np.int64(places[min(i + AHEAD, places.size - 1)]))
        target[places[i]] = numbers[i] - sent[i]


@jit
def _fetch_half(vector: Array, target: Array, at: int, size: int) -> None:
    """Lines of both for half of `size` numbers: a chunk is fetched half while the one before it is updated, half
    while that is searched, which keeps memory busy all the time."""
    for i in range(at, at + size // 2, LINE):
        _fetch(vector, i)
        _fetch(target, i)


@jit
def _groups(chunk: int, k: int) -> int:
    """A power of two, at least four for each kept number; no more than the chunk has."""
    groups = WORD
    while groups < GROUPS_PER_KEPT * k:
        groups *= 2
    return min(groups, chunk)


@jit
def _accumulate(vector: Array, beta: np.float32, target: Array, tops: Array) -> None:
    for i in range(vector.size):
        total = np.float32(target[i] * beta + vector[i])
        target[i] = total
        tops[i] = max(np.int32(tops[i]), np.int32(total.view(np.int32) & MAGNITUDE))


@jit
def _raise(bits: Array, tops: Array) -> None:
    for i in range(bits.size):
        tops[i] = max(np.int32(tops[i]), np.int32(bits[i] & MAGNITUDE))


@jit
def _count(sizes: Array, threshold: np.int32) -> np.int32:
    count: np.int32 = np.int32(0)
    for i in range(sizes.size):
        count += np.int32(sizes[i] >= threshold)
    return count


@jit
def _threshold(tops: Array, keep: int, guess: np.int32) -> np.int32:
    """A threshold, at least 1, that `keep` tops or little more reach, or all of them if they are fewer."""
    low, high, t = np.int32(0), BEYOND, guess
    for step in range(SECANTS + 32):
        count = _count(tops, t)
        if keep <= count <= keep + 1 + keep // 8:
            return t
        if count < keep:
            high = t
        else:
            low = t
        if high - low <= NEAR:
            break
        near = np.int64(t) + np.int64(np.log2((count + 0.3) / (keep + 0.6)) * OCTAVE / TAIL)
        t = np.int32(max(low + 1, min(high - 1, near)) if step < SECANTS else low + (high - low) // 2)
    return max(low, np.int32(1))


@jit
def _collect(bits: Array, threshold: np.int32, places: Array, vector: Array, target: Array, ahead: int) -> int:
    """Where the threshold is reached, in order. What is needed next, from `ahead` on, is fetched meanwhile."""
    n, whole = 0, bits.size // WORD * WORD
    for low in range(0, whole, WORD):
        word = _reaching(bits, low, threshold)
        while word:
            places[n] = low + _lowest(word)
            word &= word - np.uint64(1)
            n += 1
        _fetch_half(vector, target, ahead + low // 2, WORD)
    for i in range(whole, bits.size):
        if np.int32(bits[i] & MAGNITUDE) >= threshold:
            places[n] = i
            n += 1
    return n


@jit
def _emit(places: Array, candidates: Array, keep: int, floor: np.int32, first: int, indices: Array, n: int) -> int:
    """Appends first + the places of the `keep` largest candidates, of equal ones the first."""
    low, high, step = floor, BEYOND, np.int64(NEAR)
    ties = places.size
    if places.size > keep:
        while low + step < BEYOND and _count(candidates, np.int32(low + step)) >= keep:
            low = np.int32(low + step)
            step *= 2
        high = np.int32(min(np.int64(low + step), np.int64(BEYOND)))
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
