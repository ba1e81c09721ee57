"""A worker that needs no torch and none of our code: pyzmq, msgpack and numpy, in lock-step over a REQ socket.

    lightning-async serve --local-steps 20 --total-steps 2000 &
    python -m examples.simple.client tcp://127.0.0.1:5555

It fits y = x @ w + b. Written after docs/protocol.md, section 11, to be translated into whatever language you have.
"""

from __future__ import annotations

import hashlib
import json
import sys
import time
import uuid
import zlib
from typing import Any

import msgpack
import numpy as np
import zmq

TENSORS = [["w", [4, 1], "float32", "parameter"], ["b", [1], "float32", "parameter"]]
DIGEST = hashlib.sha256(json.dumps(TENSORS, separators=(",", ":")).encode()).hexdigest()[:32]
TRUTH = np.array([1.0, -2.0, 0.5, 3.0, 0.25], np.float32)
WAIT_MS = 10_000


class Client:
    """Asks one thing at a time. A question without an answer is asked again, with the same id, on a new socket."""

    def __init__(self, address: str) -> None:
        self._address, self._id, self._context = address, 0, zmq.Context()
        self._socket = self._dial()

    def _dial(self) -> zmq.Socket[bytes]:
        socket = self._context.socket(zmq.REQ)
        socket.setsockopt(zmq.RCVTIMEO, WAIT_MS)
        socket.setsockopt(zmq.LINGER, 0)
        socket.connect(self._address)
        return socket

    def ask(self, name: str, payload: tuple[bytes, ...] = (), **fields: object) -> tuple[dict[str, Any], list[bytes]]:
        """The answer: its fields and its payload."""
        self._id += 1
        head = msgpack.packb({"t": name, "i": self._id, "c": [checksum(frame) for frame in payload], **fields})
        crc = zlib.crc32(head).to_bytes(4, "little")
        while True:
            try:
                self._socket.send_multipart([b"LA\x01\x00" + crc + head, *payload])
                header, *frames = self._socket.recv_multipart()
            except zmq.Again:  # a REQ socket that waits for an answer can do nothing else any more
                self._socket.close()
                self._socket = self._dial()
                continue
            if zlib.crc32(header[8:]).to_bytes(4, "little") != header[4:8]:
                continue
            reply = msgpack.unpackb(header[8:])
            if reply["t"] == "Refused":
                raise SystemExit(f"{name} refused: {reply['reason']}: {reply['detail']}")
            return reply, frames

    def close(self) -> None:
        self._socket.close()
        self._context.term()


def checksum(frame: bytes) -> int:
    """Section 6: the sum of 64-bit words and the length."""
    words = np.frombuffer(frame + bytes(-len(frame) % 8), "<u8")
    return (int(words.sum(dtype=np.uint64)) + len(frame)) % 2**64 % (2**63 - 1)


def train(address: str, seed: int = 0) -> np.ndarray:
    """Take part until the run is over; the parameters at its end, [5]."""
    random, client, seq = np.random.default_rng(seed), Client(address), 0
    who = {"worker": f"simple-{uuid.uuid4().hex[:6]}", "instance": uuid.uuid4().hex}
    welcome, _ = client.ask("Hello", **who, tensors=TENSORS, digest=DIGEST)
    while welcome["version"] < 0 and not welcome["initialise"]:
        time.sleep(1.0)  # somebody else was asked for the first parameters
        welcome, _ = client.ask("Hello", **who, tensors=TENSORS, digest=DIGEST)
    if welcome["initialise"]:
        client.ask("Init", (bytes(20), b""), digest=DIGEST)
    if welcome["config"]["fragments"] > 1:
        raise SystemExit(
            "this run's updates travel in pieces (docs/protocol.md, section 8); this client sends them whole"
        )
    stop, steps = False, rounds(welcome)
    while not stop:
        params, (published, _buffers) = client.ask("Pull")  # a snapshot, since it names nothing that it has
        base = np.frombuffer(published, "<f4")
        local = base.copy()
        for _ in range(steps):
            x = random.standard_normal((16, 5), np.float32)
            x[:, 4] = 1.0
            local -= 0.05 * 2 / 16 * x.T @ (x @ (local - TRUTH))
        seq += 1
        update = (base - local).astype("<f4").tobytes()
        receipt, _ = client.ask("Push", (update, b""), seq=seq, base=params["version"], digest=DIGEST, steps=steps)
        stop, steps = receipt["stop"] or params.get("stop", False), rounds(receipt) or steps
    client.ask("Leave")
    client.close()
    return base


def rounds(told: dict[str, Any]) -> int:
    """The steps of the next rounds: what this worker is told (where the run fits them), or the run's."""
    length = told.get("config", {}).get("local_steps", 0)
    return told.get("round_steps") or (length if isinstance(length, int) else 1)


if __name__ == "__main__":
    print(train(sys.argv[1]))
