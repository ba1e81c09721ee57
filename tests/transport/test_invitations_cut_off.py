"""An invitation whose server dies, or whose disk is full, while it is used: never lost, and never used twice."""

from __future__ import annotations

import contextlib
import errno
import threading
import time
from pathlib import Path

import pytest
from keyring import Keyring

from lightning_async.errors import ConfigError
from lightning_async.transport import door as module
from lightning_async.transport import invitations
from lightning_async.transport.allowed import FILE, Caller
from lightning_async.transport.door import Door
from lightning_async.transport.zeromq_curve import new_pair

PEER = b"line0"


@pytest.fixture
def ring(tmp_path: Path) -> Keyring:
    return Keyring(tmp_path / "server")


def invited(ring: Keyring) -> str:
    return invitations.invite(ring.folder, Caller("", "worker"), 3600.0, time.time())


class Died(BaseException):
    pass


def test_after_a_death_between_the_token_and_the_list_the_same_key_comes_in(
    ring: Keyring, monkeypatch: pytest.MonkeyPatch
) -> None:
    token, key, other = invited(ring), new_pair().public, new_pair().public

    def dies(*args: object) -> None:
        raise Died

    with monkeypatch.context() as dying:
        dying.setattr(module, "allow", dies)
        with pytest.raises(Died):
            Door(ring.folder).enrol(PEER + key, token, "alice")
    again = Door(ring.folder)
    assert not again.knock(other)
    assert again.knock(key), "its use is not complete"
    with pytest.raises(ConfigError, match="has been used"):
        again.enrol(PEER + other, token, "eve")
    assert again.enrol(PEER + key, token, "alice") == Caller("alice", "worker")


def test_a_death_while_the_token_is_claimed_burns_nothing(ring: Keyring, monkeypatch: pytest.MonkeyPatch) -> None:
    token, key = invited(ring), new_pair().public

    def dies(*args: object) -> None:
        raise Died

    with monkeypatch.context() as dying:
        dying.setattr("os.fsync", dies)
        with pytest.raises(Died):
            invitations.redeem(ring.folder, token, key, "alice", time.time())
    assert Door(ring.folder).knock(key)
    assert Door(ring.folder).enrol(PEER + key, token, "alice").name == "alice"


def test_a_full_disk_refuses_and_burns_nothing(ring: Keyring, monkeypatch: pytest.MonkeyPatch) -> None:
    token, key = invited(ring), new_pair().public

    def full(*args: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    for broken in ("os.fsync", "os.replace"):
        with monkeypatch.context() as context:
            context.setattr(broken, full)
            with pytest.raises(ConfigError, match="No space left"):
                Door(ring.folder).enrol(PEER + key, token, "alice")
        assert Door(ring.folder).knock(new_pair().public), "the invitation is still open"
    with monkeypatch.context() as context:
        context.setattr(module, "allow", full)
        with pytest.raises(OSError, match="No space left"):
            Door(ring.folder).enrol(PEER + key, token, "alice")
    assert Door(ring.folder).enrol(PEER + new_pair().public, token, "bob").name == "bob"


def test_who_was_taken_out_by_hand_does_not_come_back_by_the_same_line(ring: Keyring) -> None:
    token, key = invited(ring), new_pair().public
    empty = (ring.folder / FILE).read_text()
    Door(ring.folder).enrol(PEER + key, token, "alice")
    (ring.folder / FILE).write_text(empty)
    door = Door(ring.folder)
    assert not door.knock(key)
    with pytest.raises(ConfigError, match="has been used"):
        door.enrol(PEER + key, token, "alice")


def test_of_many_who_come_at_once_one_is_taken(ring: Keyring) -> None:
    token, keys, taken = invited(ring), [new_pair().public for _ in range(8)], list[str]()
    ready = threading.Barrier(len(keys))

    def comes(number: int) -> None:
        ready.wait()
        with contextlib.suppress(ConfigError):
            taken.append(Door(ring.folder).enrol(PEER + keys[number], token, f"w{number}").name)

    threads = [threading.Thread(target=comes, args=(number,)) for number in range(len(keys))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(taken) == 1
    assert taken[0] in (ring.folder / FILE).read_text()
    assert sorted(path.suffix for path in (ring.folder / invitations.FOLDER).iterdir()) == [".json", ".used"]
