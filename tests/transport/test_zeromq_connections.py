"""What the door knows of connections by their descriptors, whose numbers belong to something else soon after."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest
import zmq

from lightning_async.transport.zeromq_connections import Connections, _Connection, _received_bytes, _same


def open_descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="descriptors are counted where Linux shows them")
def test_a_number_that_is_no_connection_any_more_costs_no_descriptor() -> None:
    """Whoever connects and hangs up at once must not take one of the server's descriptors with him, each time."""
    ends = os.pipe()
    try:
        before = open_descriptors()
        for _ in range(10):
            with pytest.raises(OSError, match=r".*"):
                _same(ends[0])
            assert _received_bytes(ends[0], _Connection("127.0.0.1", 5)) == 0
        assert open_descriptors() == before
    finally:
        for end in ends:
            os.close(end)
    with pytest.raises(OSError, match=r".*"):
        _same(ends[0])


def test_a_number_that_is_another_kind_of_socket_by_now_is_passed_over() -> None:
    """An error would end the thread that lets people in."""
    left, right = socket.socketpair()
    with left, right, zmq.Context() as context, context.socket(zmq.ROUTER) as router:
        connections = Connections(router, lambda why: 0)
        try:
            connections._enter(left.fileno())
            assert not connections._open
        finally:
            connections.close()
