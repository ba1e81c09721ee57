"""The shaping proxy against its presets and a bare socket: is the line as wide and as long as it says?

Two threads of this process and the proxy's share the machine. Rates are those of one stream after its first second,
and bytes / time in the same place over a bare socket is what this machine could do. Latency is the round trip of one
byte, the median of many, less the one over a bare socket: what is left should be the preset's. Jitter and loss are
taken out where an exact number is expected; the rows named "with loss" keep them, against the formula of Mathis et al.
"""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from statistics import median
from typing import Any
from urllib.parse import urlsplit

from lightning_async.links import Link, link
from lightning_async.transport.shaping import Proxy

WARM_S, LASTS_S = 1.0, 3.0
LOSSY_S = 30.0
ROUND_TRIPS = 40
PLAIN = "jitter_ms=0, loss=0, duplicate=0, brownout=None"
NAMES = ["datacenter", "lan", "wan_good", "wan_typical", "cellular", "mobile_1mbps", "satellite"]


def _ends(line: Link | None, undo: ExitStack) -> tuple[socket.socket, socket.socket]:
    """Both ends of a connection: over `line`, or bare."""
    door = undo.enter_context(socket.create_server(("127.0.0.1", 0)))
    place = door.getsockname()[:2]
    if line is not None:
        parts = urlsplit(undo.enter_context(Proxy(f"tcp://127.0.0.1:{place[1]}", line)).address)
        place = (parts.hostname, parts.port)
    near = undo.enter_context(socket.create_connection(place))
    far = undo.enter_context(door.accept()[0])
    for end in (near, far):
        end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return near, far


def bytes_per_s(line: Link | None, lasts_s: float = LASTS_S) -> float:
    """Of one stream, once the line is full."""
    with ExitStack() as undo:
        near, far = _ends(line, undo)
        stop = threading.Event()
        sender = threading.Thread(target=_pour, args=(near, stop))
        sender.start()
        buffer, count, began = bytearray(1 << 20), 0, time.perf_counter()
        while (now := time.perf_counter()) < began + WARM_S:
            far.recv_into(buffer)
        while (last := time.perf_counter()) < now + lasts_s:
            count += far.recv_into(buffer)
        stop.set()
        far.close()
        sender.join()
    return count / (last - now)


def _pour(near: socket.socket, stop: threading.Event) -> None:
    block = bytes(1 << 18)
    while not stop.is_set():
        try:
            near.sendall(block)
        except OSError:
            return


def round_trip_s(line: Link | None) -> float:
    """Of one byte on an idle line, the median."""
    with ExitStack() as undo:
        near, far = _ends(line, undo)
        answer = threading.Thread(target=_echo, args=(far,))
        answer.start()
        took = []
        for _ in range(ROUND_TRIPS):
            began = time.perf_counter()
            near.sendall(b"x")
            near.recv(1)
            took.append(time.perf_counter() - began)
        near.shutdown(socket.SHUT_WR)
        answer.join()
    return median(took)


def _echo(far: socket.socket) -> None:
    while byte := far.recv(1):
        far.sendall(byte)


def rows() -> Iterator[dict[str, Any]]:
    bare_rate, bare_s = bytes_per_s(None), round_trip_s(None)
    for name in NAMES:
        line = link(f"{name}({PLAIN})")
        yield _rate(name, bytes_per_s(line), line.bytes_per_s("up"), 0.95, bare_rate)
        added_ms = (round_trip_s(line) - bare_s - line.rtt_s) * 1000
        yield {
            "bench": f"shaping_{name}_added_latency",
            "ours": round(added_ms, 3),
            "reference": 2.0,
            "floor": 1.0,
            "lower": True,
            "unit": "ms of a round trip above the preset's",
            "ratio": round(abs(added_ms) / 2.0, 3),
            "preset_ms": line.rtt_s * 1000,
            "bare_ms": round(bare_s * 1000, 3),
        }
    for name in ("mobile_1mbps", "degraded"):
        line = link(name)
        yield _rate(f"{name}_with_loss", bytes_per_s(line, LOSSY_S), line.bytes_per_s("up"), 0.8, bare_rate)


def _rate(name: str, ours: float, reference: float, floor: float, bare: float) -> dict[str, Any]:
    return {
        "bench": f"shaping_{name}_rate",
        "ours": float(f"{ours * 8 / 1e6:.4g}"),
        "reference": float(f"{reference * 8 / 1e6:.4g}"),
        "floor": floor,
        "unit": "Mbit/s",
        "ratio": round(min(ours / reference, reference / ours), 4),  # too fast is as wrong as too slow
        "bare": float(f"{bare * 8 / 1e6:.4g}"),
    }


if __name__ == "__main__":
    for row in rows():
        print(json.dumps(row), flush=True)
