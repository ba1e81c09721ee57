"""Answers to Probe: bytes for bytes, the time, and whether a model is the run's. The run hears nothing of it.

Abuse is bounded by budgets of bytes, one for each peer (each key, where there are keys) and one for all of them, since
who has no key can come again as somebody else: an answer takes its bytes out of both, and is refused when they are not
there. What it brings is the same frame for everybody, so an answer takes no memory.
"""

from __future__ import annotations

import os
import time
from collections import OrderedDict
from collections.abc import Callable
from functools import cached_property

from lightning_async.errors import PayloadError
from lightning_async.layout import Layout, difference, read_manifest
from lightning_async.machine import free_bytes, versions
from lightning_async.transport.conduct import Bucket
from lightning_async.wire import messages as m
from lightning_async.wire.frames import Frame
from lightning_async.wire.messages import Reason

MOST_BYTES = 2**22  # in one direction of one Probe
OWN_BYTES, OWN_BYTES_S = 48.0 * 2**20, 2.0**20  # of one peer
ALL_BYTES, ALL_BYTES_S = 128.0 * 2**20, 2.0**21
PROBE_BYTES, ROW_BYTES = 4096, 64  # what a Probe, and each tensor that it names, costs beside its payloads
MOST_PEERS = 1024  # whose budgets are remembered


class Probes:
    """Of one server. `layout` gives the run's, None while it has none; `clock` is monotonic, `wall` Unix time."""

    def __init__(
        self,
        layout: Callable[[], Layout | None],
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = lambda: time.time(),
    ) -> None:
        self._layout, self._clock, self._wall = layout, clock, wall
        self._own: OrderedDict[bytes, Bucket] = OrderedDict()
        self._all = Bucket(ALL_BYTES_S, ALL_BYTES, ALL_BYTES, clock())

    def answer(self, who: bytes, probe: m.Probe, payload_bytes: tuple[int, ...]) -> tuple[m.Reply, tuple[Frame, ...]]:
        """(reply, its payload) to a Probe of `who` with payload frames of these sizes."""
        received_at = self._wall()
        refusal = self._refusal(who, probe, payload_bytes)
        if refusal is not None:
            return refusal, ()
        try:
            differing = self._differing(probe)
        except PayloadError as error:
            return m.Refused(reason=Reason.LAYOUT.value, detail=str(error)), ()
        host = {**versions(), "free_bytes": free_bytes()}
        echo = m.Echo(received_at=received_at, answered_at=self._wall(), host=host, layout=differing)
        return echo, (memoryview(self._noise)[: probe.down_bytes],) if probe.down_bytes else ()

    def _refusal(self, who: bytes, probe: m.Probe, sizes: tuple[int, ...]) -> m.Refused | None:
        if len(sizes) > 1 or sum(sizes) > MOST_BYTES or not 0 <= probe.down_bytes <= MOST_BYTES:
            return m.Refused(
                reason=Reason.LIMIT.value,
                detail=f"got {len(sizes)} frames of {sum(sizes)} bytes and down_bytes={probe.down_bytes}; a Probe has "
                f"one frame at most, and {MOST_BYTES} bytes in each direction",
            )
        cost = float(PROBE_BYTES + sum(sizes) + probe.down_bytes + ROW_BYTES * len(probe.tensors))
        now = self._clock()
        own = self._own.setdefault(who, Bucket(OWN_BYTES_S, OWN_BYTES, OWN_BYTES, now))
        while len(self._own) > MOST_PEERS:
            self._own.popitem(last=False)
        if own.take(now, cost) and self._all.take(now, cost):
            return None
        return m.Refused(
            reason=Reason.LIMIT.value,
            detail=f"enough was measured for now: this server answers Probes with {OWN_BYTES_S / 2**20:.0f} MiB a "
            f"second for each peer and {ALL_BYTES_S / 2**20:.0f} MiB for all, when what it had saved up is gone. "
            "Try again in a minute",
        )

    def _differing(self, probe: m.Probe) -> str:
        """Raises PayloadError for tensors that are no manifest."""
        if not probe.tensors:
            return ""
        theirs, ours = read_manifest(probe.tensors), self._layout()
        return "" if ours is None else difference(ours, theirs)

    @cached_property
    def _noise(self) -> bytes:
        """Bytes that nothing on the way makes shorter."""
        return os.urandom(MOST_BYTES)
