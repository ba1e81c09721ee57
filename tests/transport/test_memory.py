"""What only the memory transport has: views of the sender's bytes, many threads, nothing kept at the end."""

from __future__ import annotations

import contextlib
import threading

import pytest
from eventually import ENOUGH_S

from lightning_async.errors import NetworkError
from lightning_async.transport import memory


def test_frames_are_read_only_views_of_the_senders_bytes():
    with contextlib.closing(memory.listen()) as listener, contextlib.closing(memory.connect(listener.address)) as line:
        sent = bytearray(b"abc")
        line.send([sent])
        frame = listener.receive(0.0)[1][0]
        assert frame.obj is sent
        with pytest.raises(TypeError, match="read-only"):
            frame[0] = 1


def test_the_last_one_out_leaves_nothing():
    listener = memory.listen("memory://here")
    line = memory.connect("memory://here")
    listener.close()
    assert "here" in memory._exchanges
    line.close()
    assert memory._exchanges == {}


def test_many_threads_send_while_one_listens():
    with contextlib.closing(memory.listen()) as listener:
        threads = [threading.Thread(target=_talk, args=(listener.address, 200), daemon=True) for _ in range(8)]
        for thread in threads:
            thread.start()
        for _ in range(8 * 200):
            peer, frames = listener.receive(ENOUGH_S)
            assert listener.send(peer, frames)
        for thread in threads:
            thread.join()
        assert listener.receive(0.0) is None


def _talk(address: str, count: int) -> None:
    with contextlib.closing(memory.connect(address)) as line:
        for number in range(count):
            _send(line, [b"%d" % number])
            assert bytes(line.receive(ENOUGH_S)[0]) == b"%d" % number


def _send(line, frames):
    with contextlib.suppress(NetworkError):
        return line.send(frames)
    return _send(line, frames)
