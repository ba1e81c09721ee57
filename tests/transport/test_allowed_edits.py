"""The list of keys while people edit it by hand and a server reads it."""

from __future__ import annotations

from pathlib import Path

import pytest
from keyring import Keyring

from lightning_async.transport import allowed
from lightning_async.transport.allowed import VANISHED_S, Allowed, Caller
from lightning_async.transport.zeromq_curve import new_pair


@pytest.fixture
def ring(tmp_path: Path) -> Keyring:
    return Keyring(tmp_path / "server")


class Reader:
    """A server's view of the list, whose clock the test moves."""

    def __init__(self, ring: Keyring) -> None:
        self.path, self.now = ring.folder / allowed.FILE, 100.0
        self.list = Allowed(ring.folder, lambda: self.now)

    def sees(self, text: str | None = None) -> dict[str, Caller]:
        """By name, after somebody has put `text` into the file."""
        if text is not None:
            self.path.write_text(text)
        self.list.refresh()
        return {caller.name: caller for caller in self.list.callers.values()}


def half_written(text: str) -> list[str]:
    """What an editor that empties the file first leaves there for a moment."""
    return ["", text[:10], text[: len(text) // 2], text[:-30], text[:-3]]


def test_a_file_that_is_being_written_throws_nobody_out(ring: Keyring) -> None:
    ring.key("alice")
    ring.key("bob", workers=12)
    reader = Reader(ring)
    whole, edition = reader.path.read_text(), reader.list.edition
    for part in half_written(whole):
        assert set(reader.sees(part)) == {"alice", "bob"}, part
        reader.now += VANISHED_S / 10
    assert reader.sees(whole)["bob"].workers == 12
    reader.now += 10 * VANISHED_S
    assert set(reader.sees()) == {"alice", "bob"}
    assert reader.list.edition >= edition


def test_a_line_that_was_taken_out_is_out_when_it_does_not_come_back(ring: Keyring) -> None:
    ring.key("alice")
    reader, only_alice = Reader(ring), (ring.folder / allowed.FILE).read_text()
    ring.key("bob")
    assert set(reader.sees()) == {"alice", "bob"}
    assert set(reader.sees(only_alice)) == {"alice", "bob"}
    edition = reader.list.edition
    reader.now += VANISHED_S
    assert set(reader.sees()) == {"alice"}
    assert reader.list.edition == edition + 1, "who was in the run is counted out"
    assert set(reader.sees()) == {"alice"}
    assert reader.list.edition == edition + 1


def test_revocations_and_new_keys_hold_at_once(ring: Keyring) -> None:
    key = ring.key("alice")
    reader = Reader(ring)
    ring.revoke("alice")
    assert reader.sees()["alice"].role == "revoked"
    ring.key("bob")
    assert reader.sees()["bob"].role == "worker"
    other = new_pair().public.hex()
    assert reader.sees(f"alice worker {other}\n")["alice"] == Caller("alice", "worker")
    assert key.pair.public not in reader.list.callers, "a name has one key at a time"


def test_a_revocation_that_was_added_below_holds(ring: Keyring) -> None:
    key = ring.key("alice")
    reader = Reader(ring)
    revoked = f"alice revoked {key.pair.public.hex()}\n"
    assert reader.sees(reader.path.read_text() + revoked)["alice"].role == "revoked"
    back = f"{revoked}alice worker {key.pair.public.hex()}\n"
    assert reader.sees(back)["alice"].role == "revoked", "and no line below it takes it back"
