"""Memory for vectors that are given out: it comes back by itself when nobody holds a view of it any more.

A fresh allocation of this size costs a page fault for every 4 KiB, more than the copy into it. So a buffer is used
again, once the last tensor, array or frame over it has died, wherever that happens: a frame on its way through a socket
dies in ZeroMQ's thread.
"""

from __future__ import annotations

import weakref
from collections import deque

import numpy as np
import torch
from torch import Tensor

KEPT = 3  # buffers that wait for the next vector; one is the usual, others were held longer by slow readers


class Pool:
    """Vectors float32 [d] for one writer."""

    def __init__(self, d: int) -> None:
        self._d = d
        self._free: deque[memoryview] = deque(maxlen=KEPT)

    def copy(self, vector: Tensor) -> Tensor:
        """A copy of `vector` [d]. Views of it may be kept for as long as anybody likes."""
        memory = self._take()
        view = np.frombuffer(memory, dtype=np.float32)  # owns nothing; its own views hold it, not `memory`
        weakref.finalize(view, self._free.append, memory).atexit = False
        return torch.from_numpy(view).copy_(vector)

    def _take(self) -> memoryview:
        try:
            return self._free.popleft()
        except IndexError:
            return np.empty(self._d, dtype=np.float32).data.cast("B")
