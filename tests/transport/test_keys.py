"""Key files, the allow-list and invitations: what they hold, who may read them, and what is refused."""

from __future__ import annotations

import json
import logging
import os
import stat
import time
from pathlib import Path

import pytest
from keyring import Keyring

from lightning_async.errors import ConfigError
from lightning_async.files import write_private
from lightning_async.transport import allowed, invitations
from lightning_async.transport.allowed import Allowed, Caller
from lightning_async.transport.door import Door
from lightning_async.transport.keys import (
    VARIABLE,
    Key,
    config_dir,
    file_for,
    key_for,
    read_key,
    read_server,
    write_key,
)
from lightning_async.transport.zeromq_curve import new_pair

FAR = "tcp://server.example:5555"
PEER = b"\0\0\0\0\1"
posix = pytest.mark.skipif(os.name != "posix", reason="no such modes here")


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_what_is_written_is_read_and_is_for_its_owner_alone(ring: Keyring, tmp_path: Path) -> None:
    key = ring.key("alice", workers=2, address=FAR)
    path = ring.file(key, tmp_path / "deep" / "alice.key")
    assert read_key(path) == key
    assert read_server(ring.folder) == ring.server
    if os.name == "posix":
        files = [path, *(found for found in ring.folder.rglob("*") if found.is_file())]
        assert len(files) >= 3
        assert {mode(file) for file in files} == {0o600}
    with pytest.raises(ConfigError, match="there already"):
        write_key(path, key)


@posix
@pytest.mark.parametrize("bad", [0o640, 0o604, 0o644, 0o660])
def test_a_secret_that_others_can_read_is_refused(ring: Keyring, tmp_path: Path, bad: int) -> None:
    path = ring.file(ring.key("alice"), tmp_path / "alice.key")
    path.chmod(bad)
    with pytest.raises(ConfigError, match=rf"mode is {bad:03o}.*chmod 600"):
        read_key(path)
    (ring.folder / "server.key").chmod(bad)
    with pytest.raises(ConfigError, match="chmod 600"):
        Door(ring.folder)


@posix
def test_a_list_that_others_can_write_is_refused(ring: Keyring) -> None:
    (ring.folder / allowed.FILE).chmod(0o666)
    with pytest.raises(ConfigError, match="can be written by others"):
        Door(ring.folder)


def test_a_secret_stands_in_no_repr(ring: Keyring) -> None:
    key = ring.key("alice")
    token = invitations.invite(ring.folder, Caller("bob", "worker"), 60.0, now=0.0)
    line = invitations.Line(FAR, ring.server.public, token)
    for shown in (repr(key), repr(ring.server), repr(line), str(line)):
        for secret in (key.pair.secret, ring.server.secret):
            assert secret.hex() not in shown
            assert repr(secret) not in shown
        assert token.partition("-")[2] not in shown


@pytest.mark.parametrize("text", ["", "{}", "[]", "not json", '{"public": "00"}', '{"public": 3, "secret": []}'])
def test_a_file_that_is_no_key_says_so_without_repeating_it(ring: Keyring, tmp_path: Path, text: str) -> None:
    write_private(tmp_path / "x.key", text)
    with pytest.raises(ConfigError, match=r"x\.key"):
        read_key(tmp_path / "x.key")


def test_where_a_key_is_looked_for(ring: Keyring, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second, third = ring.key("a"), ring.key("b"), ring.key("c")
    assert config_dir() == tmp_path / "config" / "lightning_async"
    ring.file(first, file_for(FAR))
    assert key_for(FAR) == first
    monkeypatch.setenv(VARIABLE, str(ring.file(second, tmp_path / "b.key")))
    assert key_for(FAR) == second
    assert key_for(FAR, ring.file(third, tmp_path / "c.key")) == third
    assert key_for(FAR, "none") is None
    monkeypatch.setenv(VARIABLE, "none")
    assert key_for(FAR) is None


def test_beyond_this_machine_nobody_speaks_without_a_key_by_accident(ring: Keyring) -> None:
    for address in (FAR, "tcp://192.0.2.1:5555"):
        with pytest.raises(ConfigError, match=r'lightning-async join LINE.*key="none"'):
            key_for(address)
    for address in ("tcp://127.0.0.1:5555", "tcp://localhost:5555", "tcp://[::1]:5555", "memory://x"):
        assert key_for(address) is None


def test_a_key_bears_its_own_name_only() -> None:
    key = Key("alice", "worker", new_pair(), bytes(32), workers=3)
    assert [key.worker_name("", rank) for rank in range(3)] == ["alice", "alice/1", "alice/2"]
    assert key.worker_name("alice/2", 0) == "alice/2"
    for other in ("bob", "alicex", "alice2/1"):
        with pytest.raises(ConfigError, match="bears no other name"):
            key.worker_name(other, 0)


def test_the_list_is_read_again_when_it_has_changed(ring: Keyring) -> None:
    key = ring.key("alice")
    found = Allowed(ring.folder)
    assert found.callers == {key.pair.public: Caller("alice", "worker")}
    other = ring.key("bob", "observer")
    assert found.callers == {key.pair.public: Caller("alice", "worker")}
    found.refresh()
    assert found.callers[other.pair.public] == Caller("bob", "observer")
    ring.revoke("alice")
    found.refresh()
    assert found.callers[key.pair.public].role == "revoked"


def test_a_line_that_is_wrong_allows_nobody_and_the_others_still_count(
    ring: Keyring, caplog: pytest.LogCaptureFixture
) -> None:
    key, other = ring.key("alice", workers=4), new_pair().public.hex()
    bad = [
        f"alice worker {other}",  # a name that another key has
        f"eve worker {key.pair.public.hex()}",  # a key that has another name
        f"eve king {other}",
        f"eve worker {other[:-1]}",
        f"eve worker {other} 0",
        f"e/ve worker {other}",
        f"eve worker {other} 1 1",
        "eve",
    ]
    path = ring.folder / allowed.FILE
    write_private(path, path.read_text() + "\n".join(["", "# a word", *bad, f"mary worker {other} # hers"]) + "\n")
    with caplog.at_level(logging.ERROR):
        callers = Allowed(ring.folder).callers
    assert callers == {
        key.pair.public: Caller("alice", "worker", 4),
        bytes.fromhex(other): Caller("mary", "worker"),
    }
    assert len([record for record in caplog.records if "allows nobody" in record.message]) == len(bad)


def test_a_list_that_goes_away_stays_as_it_was(ring: Keyring, caplog: pytest.LogCaptureFixture) -> None:
    key = ring.key("alice")
    found = Allowed(ring.folder)
    (ring.folder / allowed.FILE).unlink()
    found.refresh()
    assert key.pair.public in found.callers
    assert "stays as it was" in caplog.text


def test_a_revoked_name_is_never_given_again(ring: Keyring) -> None:
    ring.key("alice")
    ring.revoke("alice")
    ring.revoke("alice")
    with pytest.raises(ConfigError, match="choose another name"):
        ring.key("alice")
    with pytest.raises(ConfigError, match="no key is called 'bob'"):
        ring.revoke("bob")


def invited(ring: Keyring, name: str = "", ttl_s: float = 60.0) -> str:
    return invitations.invite(ring.folder, Caller(name, "worker", 2), ttl_s, now=1000.0)


def test_an_invitation_is_good_once_and_for_its_key_again(ring: Keyring) -> None:
    token, mine, other = invited(ring), new_pair().public, new_pair().public
    assert invitations.expects(ring.folder, mine, 1000.0)
    assert invitations.redeem(ring.folder, token, mine, "alice", 1001.0) == Caller("alice", "worker", 2)
    assert not invitations.expects(ring.folder, other, 1000.0)
    assert invitations.redeem(ring.folder, token, mine, "alice", 1001.0) == Caller("alice", "worker", 2)
    with pytest.raises(ConfigError, match="has been used"):
        invitations.redeem(ring.folder, token, other, "eve", 1001.0)


def test_an_invitation_may_say_the_name(ring: Keyring) -> None:
    assert invitations.redeem(ring.folder, invited(ring, "bob"), new_pair().public, "eve", 1001.0).name == "bob"


def test_an_invitation_expires(ring: Keyring) -> None:
    token = invited(ring)
    assert invitations.expects(ring.folder, bytes(32), 1059.9)
    assert not invitations.expects(ring.folder, bytes(32), 1060.0)
    with pytest.raises(ConfigError, match="expired"):
        invitations.redeem(ring.folder, token, new_pair().public, "alice", 1060.0)
    invitations.invite(ring.folder, Caller("", "worker"), 60.0, now=2000.0)
    assert len(list((ring.folder / invitations.FOLDER).iterdir())) == 1, "the expired one is swept"


def test_a_wrong_token_is_refused(ring: Keyring) -> None:
    number, _, secret = invited(ring).partition("-")
    other = invited(ring).partition("-")[2]
    wrong = [f"{number}-{other}", f"{'0' * 12}-{secret}", "", "x", f"{number}-", f"../../x-{secret}", "0" * 45]
    for token in wrong:
        with pytest.raises(ConfigError, match="not known here"):
            invitations.redeem(ring.folder, token, new_pair().public, "eve", 1001.0)


def test_the_servers_folder_keeps_no_token(ring: Keyring) -> None:
    secret = invited(ring).partition("-")[2]
    for path in ring.folder.rglob("*"):
        assert path.is_dir() or secret not in path.read_text()


def test_a_line_is_read_as_it_was_written_and_not_repeated_when_it_is_wrong(ring: Keyring) -> None:
    line = invitations.Line(FAR, ring.server.public, invited(ring))
    assert invitations.read(f" {line.text}\n") == line
    for text in (line.text[:-1], line.text.replace("tcp", "http"), "x", line.text.replace("-", "/"), ""):
        with pytest.raises(ConfigError) as caught:
            invitations.read(text)
        assert line.token.partition("-")[2][:-1] not in str(caught.value)


def test_enrolling_puts_a_key_onto_the_list_and_a_taken_name_does_not_use_the_invitation_up(ring: Keyring) -> None:
    ring.key("alice")
    door, key = Door(ring.folder), new_pair().public
    assert not door.knock(key)
    token = invitations.invite(ring.folder, Caller("", "worker", 2), 3600.0, now=time.time())
    assert door.knock(key), "while an invitation waits, whoever comes may ask"
    with pytest.raises(ConfigError, match="choose another name"):
        door.enrol(PEER + key, token, "alice")
    assert door.caller(PEER + key).role == ""
    assert door.enrol(PEER + key, token, "bob") == Caller("bob", "worker", 2)
    assert door.caller(PEER + key) == Caller("bob", "worker", 2)
    assert door.enrol(PEER + key, token, "bob") == Caller("bob", "worker", 2), "the answer may have been lost"
    with pytest.raises(ConfigError, match="has been used"):
        door.enrol(PEER + new_pair().public, token, "eve")
    assert door.counts == {"unknown key": 1, "wrong invitation": 1}
    assert not door.knock(new_pair().public), "nobody is invited any more"


def test_a_change_of_the_list_is_told_once_also_when_a_handshake_has_seen_it_before(ring: Keyring) -> None:
    key, now = ring.key("alice"), [0.0]
    door = Door(ring.folder, clock=lambda: now[0])
    assert not door.refresh()
    ring.revoke("alice")
    assert not door.knock(key.pair.public)
    now[0] += 10.0
    assert door.refresh()
    now[0] += 10.0
    assert not door.refresh()
    assert json.dumps(dict(door.counts)) == '{"revoked key": 1}'
