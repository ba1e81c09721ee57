"""Writing past the page cache: whatever lies wherever in memory is read again, and nothing large is copied for it."""

from __future__ import annotations

import errno
import mmap
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lightning_async.persistence import Record, direct, open_journal, payloads
from lightning_async.persistence.direct import PAGE
from lightning_async.persistence.payloads import Payloads

NOISE = os.urandom(64 * PAGE)


def placed(offset: int, size: int) -> memoryview:
    """`size` bytes that begin `offset` bytes behind a page of the memory."""
    memory = memoryview(mmap.mmap(-1, offset + size + 1))
    memory[offset : offset + size] = NOISE[:size]
    return memory[offset : offset + size]


@pytest.fixture
def needs_direct(tmp_path: Path) -> None:
    (tmp_path / "probe").touch()
    descriptor = direct.opened(tmp_path / "probe")
    if descriptor is None:
        pytest.skip("this file system does not write directly")
    os.close(descriptor)


sizes = st.one_of(st.integers(0, 3 * PAGE), st.integers(0, 5).map(lambda pages: pages * PAGE))
frames = st.lists(st.tuples(st.integers(0, PAGE - 1), sizes), min_size=1, max_size=4)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(payloads_of=st.lists(frames, min_size=1, max_size=4), least=st.sampled_from([1, 6000]))
def test_what_was_written_is_read(
    payloads_of: list[list[tuple[int, int]]], least: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    store = Payloads(tmp_path_factory.mktemp("state"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(direct, "DIRECT_BYTES", least)
        written = [[placed(*one) for one in several] for several in payloads_of if any(size for _, size in several)]
        places = [store.write(1, one) for one in written]
    try:
        for place, one in zip(places, written, strict=True):
            assert store.read(place, sum(map(len, one))) == b"".join(one)
    finally:
        store.close()


@pytest.mark.parametrize("offset", [0, 1, 56, 4095])
def test_all_of_a_large_frame_but_its_ends_is_written_from_where_it_lies(
    offset: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, needs_direct: None
) -> None:
    given: list[Sequence[memoryview]] = []
    pwritev = os.pwritev

    def noted(descriptor: int, parts: Sequence[memoryview], at: int) -> int:
        done = pwritev(descriptor, parts, at)  # raises where something does not begin at a page
        given.append(parts)
        return done

    monkeypatch.setattr(os, "pwritev", noted)
    frame, store = placed(offset, 60 * PAGE + 17), Payloads(tmp_path)
    monkeypatch.setattr(direct, "DIRECT_BYTES", 1)
    store.write(1, [b"before", frame, b"behind"])
    store.close()
    mine = np.frombuffer(frame, dtype=np.uint8)
    shared = sum(len(part) for part in given[0] if np.shares_memory(np.frombuffer(part, dtype=np.uint8), mine))
    assert len(given) == 1
    assert shared >= len(frame) - 2 * PAGE


@pytest.mark.parametrize("taken", [0, 2 * PAGE, 5 * PAGE])
def test_what_a_disk_does_not_take_directly_it_takes_through_the_cache(
    taken: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, needs_direct: None
) -> None:
    pwritev = os.pwritev

    def partly(descriptor: int, parts: Sequence[memoryview], at: int) -> int:
        if taken == 0:
            raise OSError(errno.EINVAL, "Invalid argument")
        whole = placed(0, sum(map(len, parts)))
        whole[:] = b"".join(parts)
        return pwritev(descriptor, [whole[:taken]], at)

    monkeypatch.setattr(direct, "DIRECT_BYTES", 1)
    monkeypatch.setattr(os, "pwritev", partly)
    store, one, two = Payloads(tmp_path), placed(100, 9 * PAGE), placed(4000, 7 * PAGE)
    first, second = store.write(1, [b"x", one]), store.write(2, [two])
    assert store.read(first, 1 + len(one)) == b"x" + one
    assert store.read(second, len(two)) == two
    store.close()


def test_a_disk_that_is_full_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, needs_direct: None) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "pwritev", full)
    store = Payloads(tmp_path)
    with pytest.raises(OSError, match="No space left"):
        store.write(1, [placed(56, direct.DIRECT_BYTES)])
    store.close()


def test_a_system_without_it_writes_through_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "O_DIRECT", raising=False)
    store = Payloads(tmp_path)
    place = store.write(1, [frame := placed(56, direct.DIRECT_BYTES)])
    assert store.read(place, len(frame)) == frame
    store.close()


def record(number: int) -> Record:
    return Record(number, "message", b"head", (placed(56 + number, direct.DIRECT_BYTES), b"more"))


def test_the_zeros_behind_a_payload_are_no_torn_tail_and_a_payload_is(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    one = open_journal(tmp_path)
    one.append([record(1)])
    one.close()
    one = open_journal(tmp_path)
    assert caplog.text == ""
    one.append([record(2)])
    one._stored(record(3))  # and here it dies
    one.close()
    one = open_journal(tmp_path)
    assert "while it wrote after record 2: dropped" in caplog.text
    one.append([record(3)])
    assert [bytes(found.frames[0]) for found in one.read()] == [bytes(record(1).frames[0])] * 3
    one.close()


def test_it_is_forced_before_the_row_that_names_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, needs_direct: None
) -> None:
    steps: list[str] = []
    write, force = direct.write, payloads.force_data
    monkeypatch.setattr(direct, "write", lambda *given: (steps.append("write"), write(*given))[1])
    monkeypatch.setattr(payloads, "force_data", lambda descriptor: (steps.append("force"), force(descriptor))[1])
    one = open_journal(tmp_path, at=steps.append)
    steps.clear()
    one.append([record(1), record(2)])
    one.close()
    forced = [step for step in steps if not step.startswith("journal") or step == "journal.inserted"]
    assert forced == ["write", "write", "force", "journal.inserted"]
