"""Tensors over bytes and bytes over tensors, without a copy; and memory that comes back by itself.

A fresh allocation of a model's size costs a page fault for every 4 KiB, or the zeroing of huge pages: as much as the
write into it. So a buffer is used again, once the last tensor, array or frame over it has died, wherever that happens:
a frame on its way through a socket dies in ZeroMQ's thread.
"""

from __future__ import annotations

import weakref
from collections import deque
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lightning_async.codecs.base import Payload
from lightning_async.sparse import Sparse

LARGE = 1 << 22  # bytes; what is smaller is cheap to allocate


def as_payload(tensor: Tensor) -> memoryview:
    """The bytes of a contiguous vector; on the CPU a view, which keeps the tensor's memory alive."""
    return tensor.detach().cpu().numpy().reshape(-1).view(np.uint8).data


def as_array(payload: Payload, dtype: str) -> np.ndarray[Any, np.dtype[Any]]:
    """The payload as numbers of `dtype`; its length must be a multiple of theirs. Read-only where the payload is."""
    return np.frombuffer(payload, dtype=dtype)


def as_tensor(array: np.ndarray[Any, np.dtype[Any]]) -> Tensor:
    """A tensor over the array's memory, which it keeps alive. Of read-only memory too: then it must not be written."""
    if not array.flags.aligned:
        array = array.copy()
    return torch.from_numpy(array if array.flags.writeable else np.asarray(_Shared(array)))


class _Shared:
    """Presents read-only memory as plain memory: torch knows no read-only tensors and would warn about each."""

    def __init__(self, array: np.ndarray[Any, np.dtype[Any]]) -> None:
        self.array = array
        interface = dict(array.__array_interface__)
        self.__array_interface__ = {**interface, "data": (interface["data"][0], False)}


class Pool:
    """Arrays of `size` bytes; at most `kept` buffers wait for the next one."""

    def __init__(self, size: int, kept: int) -> None:
        self._size = size
        self._free: deque[memoryview] = deque(maxlen=kept)

    def empty(self) -> np.ndarray[Any, np.dtype[Any]]:
        """uint8 [size] with anything in it. Views of it may be kept for as long as anybody likes."""
        try:
            memory = self._free.popleft()
        except IndexError:
            memory = np.empty(self._size, dtype=np.uint8).data
        view = np.frombuffer(memory, dtype=np.uint8)  # owns nothing; its own views hold it, not `memory`
        weakref.finalize(view, self._free.append, memory).atexit = False
        return view

    def copy(self, vector: Tensor) -> Tensor:
        """A copy of `vector`, whose numbers fill the pool's size."""
        return torch.from_numpy(self.empty().view(np.float32)).copy_(vector)


def fresh(size: int) -> np.ndarray[Any, np.dtype[Any]]:
    """uint8 [size] with anything in it; of large ones, one that died waits for the next of its size."""
    return _pool(size).empty() if size >= LARGE else np.empty(size, dtype=np.uint8)


def zeros(d: int) -> Tensor:
    """float32 [d] of zeros that stay: from numpy, which asks for huge pages, where torch's allocator does not."""
    return torch.from_numpy(np.empty(d, dtype=np.float32)).zero_()


def put(vector: Tensor, places: Tensor, numbers: Tensor) -> None:
    """vector[places] = numbers; on the CPU by numpy, which takes three quarters of torch's time for it."""
    if vector.device.type == "cpu":
        vector.numpy()[places.numpy()] = numbers.numpy()
    else:
        vector[places] = numbers


def scattered(sparse: Sparse) -> Tensor:
    """`sparse` as a float32 [size] in such memory: filling it is cheaper than the page faults of fresh zeros."""
    out = fresh(4 * sparse.size).view(np.float32)
    out.fill(0)
    vector = torch.from_numpy(out)
    put(vector, sparse.indices, sparse.values)
    return vector


@lru_cache(maxsize=2)  # decoded vectors, and payloads
def _pool(size: int) -> Pool:
    return Pool(size, kept=1)
