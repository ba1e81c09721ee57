"""What the tests of the embedded server begin with: one that listens, one request to it, and a worker's greeting."""

from __future__ import annotations

from typing import Any

from eventually import ENOUGH_S

from lightning_async.config import RunConfig
from lightning_async.layout import read_manifest
from lightning_async.strategy.embedded import EmbeddedServer
from lightning_async.transport import Connection, connect
from lightning_async.wire import messages as m
from lightning_async.wire.frames import Envelope, Frame, pack, unpack

GOODBYE = "from lightning_async.server import service; service.GOODBYE_S = 3600.0"  # who waits for workers hangs


def ready(config: RunConfig, **options: Any) -> EmbeddedServer:
    """A server that listens, with the options of `EmbeddedServer.begin`."""
    server = EmbeddedServer.begin(config, **options)
    server.wait_until_ready()
    return server


def say(line: Connection, request: int, message: m.Request, payload: tuple[Frame, ...] = ()) -> m.Message:
    """The answer to `message`."""
    line.send(pack(Envelope(request, message, payload)))
    frames = line.receive(ENOUGH_S)
    assert frames is not None, f"no answer within {ENOUGH_S:.0f} s"
    return unpack(frames).message


def ask(address: str, message: m.Request) -> m.Message:
    """One request over a connection of its own."""
    line = connect(address)
    try:
        return say(line, 1, message)
    finally:
        line.close()


def hello(name: str) -> m.Hello:
    tensors = [["w", [2], "float32", "parameter"]]
    return m.Hello(worker=name, instance="1", tensors=tensors, digest=read_manifest(tensors).digest)
