"""Envelope <-> frames: every message comes back as it was, the payload is not copied, and bad bytes are told apart."""

from __future__ import annotations

import contextlib
import re
import subprocess
import sys

import msgpack
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from wire_samples import MESSAGES, PAYLOADS, messages_of

from lightning_async.errors import CallerError
from lightning_async.wire import frames as f
from lightning_async.wire.messages import REPLIES, REQUESTS, Ack, Hello, Push, Reason, Refused, Report, Status
from lightning_async.wire.parts import PARTS

KINDS = (*REQUESTS, *REPLIES, *PARTS)
PUSH = Push(seq=1, base=0, digest="d")


def header(head: object, version: int = f.PROTOCOL_VERSION) -> list[bytes]:
    return [b"", f.sealed(msgpack.packb(head), version)]


@pytest.mark.parametrize("kind", KINDS)
@given(data=st.data())
def test_every_message_comes_back(kind, data):
    envelope = f.Envelope(
        data.draw(st.integers(1, 2**63 - 1)), data.draw(messages_of(kind)), tuple(data.draw(PAYLOADS))
    )
    assert f.unpack(f.pack(envelope)) == envelope


@pytest.mark.parametrize("kind", KINDS)
def test_no_field_is_called_like_a_key_of_the_header(kind):
    assert not {"t", "i", "c"} & set(kind.__dataclass_fields__)


def test_payload_frames_are_the_same_memory():
    vector, plain = np.arange(1000, dtype=np.float32), bytes(10)
    packed = f.pack(f.Envelope(1, PUSH, (memoryview(vector), plain)))
    received = f.unpack(packed).payload
    assert np.shares_memory(np.frombuffer(received[0], np.float32), vector)
    assert len(received[0]) == vector.nbytes
    assert received[1] is plain


def test_sums_that_are_known_are_not_computed_again(monkeypatch):
    payload = (bytes(100), b"abc")
    packed = f.pack(f.Envelope(1, PUSH, payload))
    sums = [f.checksum(frame) for frame in payload]
    monkeypatch.setattr(f, "checksum", lambda frame: pytest.fail("computed"))
    assert f.pack(f.Envelope(1, PUSH, payload), sums) == packed


def test_the_sums_of_what_was_read_are_known_and_of_nothing_else():
    packed = f.pack(f.Envelope(1, PUSH, (bytes(100), b"abc")))
    assert f.unpack(packed).sums == (f.checksum(bytes(100)), f.checksum(b"abc"))
    assert f.unpack(packed, verify=False).sums == ()


def test_an_enum_travels_as_its_text():
    refused = Refused(reason=Reason.STALE, detail="")
    assert type(f.unpack(f.pack(f.Envelope(1, refused))).message.reason) is str


@pytest.mark.parametrize(
    ("message", "text"),
    [
        (Report(state={"x": float("nan")}), "Report.state: got nan, expected a finite number"),
        (Report(state={"x": np.int64(1)}), "expected null, number"),
        (Report(state={"x": {1: 2}}), "expected text"),
        (Report(state={"x": b"bytes"}), "expected null, number"),
        (Push(seq=2**63, base=0, digest=""), "expected a signed 64-bit integer"),
        (Push(seq=True, base=0, digest=""), "got True, expected a signed 64-bit integer"),
        (Push(seq=1, base=0, digest="", loss=float("inf")), "got inf"),
        (Hello(worker="x" * 65_537, instance=""), "text of at most 65536"),
        (Report(state={"x": [[[[[[[[[]]]]]]]]]}), "deeper than 8"),
        (Report(state={"x": [None] * 65_537}), "at most 65536 items"),
        (Report(state={"x": [["y" * 60_000] * 80]}), "header of"),
    ],
)
def test_what_the_reader_would_refuse_is_not_sent(message, text):
    with pytest.raises(CallerError, match=re.escape(text)):
        f.pack(f.Envelope(1, message))


def test_tuples_become_lists_and_whole_numbers_become_floats():
    sent = Hello(worker="w", instance="i", tensors=[("weight", (2, 3))])
    assert f.unpack(f.pack(f.Envelope(1, sent))).message.tensors == [["weight", [2, 3]]]
    assert (
        type(
            f.unpack(header({"t": "Push", "i": 1, "c": [], "seq": 1, "base": 1, "digest": "", "loss": 2})).message.loss
        )
        is float
    )


def test_unknown_fields_are_ignored_and_missing_ones_take_their_default():
    read = f.unpack(header({"t": "Ack", "i": 7, "c": [], "version": 3, "later": {"x": [1]}}))
    assert read == f.Envelope(7, Ack(version=3))


@pytest.mark.parametrize(
    ("frames", "text"),
    [
        ([], "got 0 frames"),
        ([b""], "got 1 frames"),
        ([b"x", b"y"], "expected an empty one"),
        ([b"", b""], "not the protocol"),
        ([b"", b"GET / HTTP/1.1\r\n"], "not the protocol"),
        ([b"", b"LA\1\0"], "not the protocol"),
        ([b"", f.sealed(b"\xc1")], "no msgpack map"),
        ([b"", f.sealed(msgpack.packb({"a": b"bin"}))], "max_bin_len"),
        ([b"", f.sealed(msgpack.packb({"a": msgpack.ExtType(1, b"x")}))], "max_ext_len"),
        ([b"", f.sealed(msgpack.packb({"a": [0] * 65_537}))], "max_array_len"),
        ([b"", f.sealed(msgpack.packb({"a": dict.fromkeys(map(str, range(65_537)))}))], "max_map_len"),
        ([b"", f.sealed(msgpack.packb({1: 2}))], "no msgpack map"),
        ([b"", f.sealed(msgpack.packb([1]))], "but list"),
        ([b"", b"LA\1\0" + bytes(f.MAX_HEADER_BYTES)], "header of 4194308 bytes"),
        ([b"", f.sealed(msgpack.packb({"a": "x" * 300_000}))], "max_str_len"),
        (header({"t": "Status", "c": []}), "request id"),
        (header({"t": "Status", "i": 0, "c": []}), "request id"),
        (header({"t": "Status", "i": True, "c": []}), "request id"),
    ],
)
def test_bytes_that_are_no_message(frames, text):
    with pytest.raises(f.FrameError, match=re.escape(text)) as caught:
        f.unpack(frames)
    assert caught.value.request == 0


@pytest.mark.parametrize(
    ("head", "text"),
    [
        ({"t": "Nonsense", "c": []}, "unknown message 'Nonsense'"),
        ({"t": ["Push"], "c": []}, "unknown message"),
        ({"t": "Status"}, "one checksum for each of its 0"),
        ({"t": "Status", "c": [1]}, "one checksum for each of its 0"),
        ({"t": "Status", "c": "x"}, "one checksum for each"),
        ({"t": "Ack", "c": []}, "Ack without its field 'version'"),
        ({"t": "Ack", "c": [], "version": "3"}, "Ack.version: got '3'"),
        ({"t": "Ack", "c": [], "version": 2**63}, "Ack.version"),
        ({"t": "Ack", "c": [], "version": 1, "stop": 1}, "Ack.stop: got 1, expected true or false"),
        ({"t": "Push", "c": [], "seq": 1, "base": 1, "digest": "", "loss": float("nan")}, "Push.loss: got nan"),
        ({"t": "Push", "c": [], "seq": 1, "base": 1, "digest": "", "present": [1, None]}, "Push.present"),
        ({"t": "Pull", "c": [], "wait_s": float("inf")}, "Pull.wait_s: got inf"),
        ({"t": "Hello", "c": [], "worker": "a", "instance": "b", "claims": {"a": 1}}, "Hello.claims: got 1"),
        ({"t": "Hello", "c": [], "worker": "a", "instance": "b", "tensors": [[[[[[[[[[]]]]]]]]]]}, "deeper than 8"),
    ],
)
def test_a_bad_header_names_its_request(head, text):
    with pytest.raises(f.FrameError, match=re.escape(text)) as caught:
        f.unpack(header(head | {"i": 41}))
    assert caught.value.request == 41


@pytest.mark.parametrize(
    ("frames", "request_id"),
    [
        (header({"i": 9, "something": "else"}, version=2), 9),
        (header({}, version=7), 0),
        ([b"", b"LA\x02\x00\xc1\xc1"], 0),
    ],
)
def test_another_version_is_told_apart(frames, request_id):
    with pytest.raises(f.VersionError) as caught:
        f.unpack(frames)
    assert (caught.value.request, caught.value.ours, caught.value.theirs) == (request_id, 1, frames[1][2])
    assert f"version {frames[1][2]}, this side speaks 1" in str(caught.value)


@given(position=st.integers(0, 99), bit=st.integers(0, 7))
def test_an_altered_payload_is_refused(position, bit):
    _, head, payload = f.pack(f.Envelope(5, PUSH, (bytes(range(100)),)))
    altered = bytearray(payload)
    altered[position] ^= 1 << bit
    with pytest.raises(f.FrameError, match="altered") as caught:
        f.unpack([b"", head, altered])
    assert caught.value.request == 5
    assert f.unpack([b"", head, altered], verify=False).payload == (altered,)


@pytest.mark.parametrize("change", [lambda p: p[:-1], lambda p: p + b"\0", lambda p: p[:-8], lambda p: b""])
def test_a_payload_of_another_length_is_refused(change):
    _, head, payload = f.pack(f.Envelope(5, PUSH, (bytes(64),)))
    with pytest.raises(f.FrameError, match="altered"):
        f.unpack([b"", head, change(payload)])


@given(st.lists(st.binary(max_size=200), max_size=5))
def test_any_bytes_give_a_message_or_an_error(frames):
    _read(frames)


@given(st.binary(max_size=300), PAYLOADS)
def test_any_header_gives_a_message_or_an_error(body, payload):
    _read([b"", f.sealed(body), *payload])


KEYS = st.sampled_from(["t", "i", "c", "seq", "base", "digest", "loss", "tensors", "version", "worker"])
VALUES = st.none() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text(max_size=5) | st.lists(st.booleans())


@given(st.dictionaries(KEYS, VALUES | st.sampled_from([kind.__name__ for kind in KINDS])))
def test_any_map_gives_a_message_or_an_error(head):
    _read([b"", f.sealed(msgpack.packb(head))])


@given(MESSAGES, st.data())
def test_an_altered_header_is_refused(message, data):
    """Another sequence number, base version or number of samples would be taken for what was meant."""
    _, head = f.pack(f.Envelope(1, message))
    altered = bytearray(head)
    place = data.draw(st.sampled_from([i for i in range(len(head)) if i != 3]))  # what is reserved is ignored
    altered[place] ^= data.draw(st.integers(1, 255))
    with pytest.raises(f.FrameError) as caught:
        f.unpack([b"", altered])
    assert caught.value.request == (1 if place == 2 else 0), "no number in it is believed, but of another version"


BOMBS = """
from lightning_async.wire import frames as f
bombs = {
    "empty lists": b"\\xdc\\x00\\x7f" + (b"\\xdc\\x7f\\xff" + b"\\x90" * 32_767) * 127,
    "empty maps": b"\\xdc\\x00\\x3f" + (b"\\xdc\\xff\\xff" + b"\\x80" * 65_535) * 63,
    "lists that promise": b"\\xdd\\x00\\x40\\x00\\x00" * 800_000,
    "lists that promise less": b"\\xdc\\xff\\xff" * 1_300_000,
    "maps that promise": b"\\xdf\\x00\\x40\\x00\\x00" * 800_000,
    "deep lists": b"\\x91" * 4_000_000,
    "short texts": b"\\xdc\\x00\\x10" + (b"\\xdc\\xff\\xff" + b"\\xa2ab" * 65_535) * 16,
}
frames = {name: [b"", f.sealed(b"\\x81\\xa1a" + body)] for name, body in bombs.items()}
def highest_kib():  # not ru_maxrss, which a child inherits
    return int(open("/proc/self/status").read().split("VmHWM:")[1].split()[0])
for name, pair in frames.items():
    assert len(pair[1]) <= f.MAX_HEADER_BYTES, name
    before = highest_kib()
    try:
        f.unpack(pair)
    except f.FrameError:
        print(name, "|", (highest_kib() - before) // 1024)
"""


def test_a_header_cannot_make_the_reader_fill_its_memory():
    """In a process of its own, where the highest mark is the reader's."""
    run = subprocess.run([sys.executable, "-c", BOMBS], capture_output=True, text=True, timeout=240, check=True)
    grown_mib = {name: int(mib) for name, mib in (line.split("|") for line in run.stdout.splitlines())}
    assert len(grown_mib) == 7
    assert max(grown_mib.values()) < 100, grown_mib


def test_status_of_a_plain_client_is_short():
    """A client in another language can write this by hand."""
    assert f.pack(f.Envelope(1, Status())) == [b"", b"LA\x01\x00\xc2\xa7\xfa\x91\x83\xa1t\xa6Status\xa1i\x01\xa1c\x90"]


def _read(frames: list[bytes]) -> None:
    with contextlib.suppress(f.FrameError):
        assert isinstance(f.unpack(frames), f.Envelope)
