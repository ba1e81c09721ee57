"""Buffers come back when the last view of them has died, and not before."""

from __future__ import annotations

import gc

import torch
from room import Room

from lightning_async.codecs.memory import LARGE, Pool, fresh
from lightning_async.server.store import vector_bytes
from lightning_async.wire import messages as m
from lightning_async.wire.checksum import checksum
from lightning_async.wire.frames import pack, unpack


def test_memory_is_used_again_once_nothing_views_it() -> None:
    pool = Pool(4000, kept=3)
    vector = pool.copy(torch.ones(1000))
    place = vector.data_ptr()
    frame = vector_bytes(vector)
    part = vector[10:20]
    del vector
    assert pool.copy(torch.zeros(1000)).data_ptr() != place
    del frame
    assert pool.copy(torch.zeros(1000)).data_ptr() != place
    assert float(part.sum()) == 10.0
    del part
    gc.collect()
    places = {pool.copy(torch.zeros(1000)).data_ptr() for _ in range(2)}
    assert place in places


def test_a_pool_keeps_few() -> None:
    pool = Pool(40, kept=3)
    held = [pool.copy(torch.ones(10)) for _ in range(20)]
    held.clear()
    gc.collect()
    assert len(pool._free) == 3


def test_what_is_sent_carries_the_checksums_that_its_reader_computes() -> None:
    for download in ("none", "fp16"):
        room = Room(download_compression=download).begin("a")
        room.push("a", torch.ones(8), buffers=torch.ones(4))
        for have in (-1, 0, 0):
            actions = room.handle(room_pull(have))
            (send,) = [action for action in actions if hasattr(action, "sums")]
            assert send.sums == tuple(checksum(frame) for frame in send.envelope.payload)
            assert unpack(pack(send.envelope, send.sums)) == send.envelope


def room_pull(have: int) -> object:
    from lightning_async.server.actions import Received
    from lightning_async.wire.frames import Envelope

    return Received(b"a", Envelope(9, m.Pull(have=have)))


def test_arrays_of_a_models_size_use_the_memory_of_dead_ones() -> None:
    first = fresh(LARGE)
    place, part = first.ctypes.data, torch.from_numpy(first)[:3]
    part.fill_(7)
    del first
    assert fresh(LARGE).ctypes.data != place, "a view is still alive"
    assert part.tolist() == [7] * 3
    del part
    gc.collect()
    held = [fresh(LARGE) for _ in range(2)]
    assert place in {array.ctypes.data for array in held}
    assert fresh(LARGE + 1).size == LARGE + 1
