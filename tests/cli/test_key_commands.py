"""`keys`, `invite`, `join`, `revoke`, `stop`: from a new server to a worker that trains no more, as people do it."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import pytest
from eventually import ENOUGH_S, eventually
from serving import served

from lightning_async.cli import main as cli
from lightning_async.cli.hosting import Hosted, host
from lightning_async.cli.keys import seconds
from lightning_async.cli.place import Place
from lightning_async.cli.serve import configured
from lightning_async.config import RunConfig
from lightning_async.errors import ConfigError
from lightning_async.transport.keys import VARIABLE, read_key, server_dir

Words = tuple[int, str, str]


class Person:
    """Somebody at a terminal, with a home of his own."""

    def __init__(self, home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self.home, self._monkeypatch, self._capsys = home, monkeypatch, capsys

    def says(self, *words: object, stdin: str = "") -> Words:
        """(exit code, stdout, stderr) of `lightning-async words`."""
        self._capsys.readouterr()
        with self._monkeypatch.context() as here:
            here.setenv("XDG_CONFIG_HOME", str(self.home))
            here.delenv(VARIABLE, raising=False)
            here.setattr("sys.stdin", io.StringIO(stdin))
            asks = words[0] in ("join", "status", "stop", "snapshot") or "--server" in words
            code = cli.main([*map(str, words), *([f"--timeout={ENOUGH_S}"] if asks else [])])
        return code, *self._capsys.readouterr()


@pytest.fixture
def person(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[type[Person]]:
    return lambda name: Person(tmp_path / name, monkeypatch, capsys)


@pytest.fixture
def owner(person: type[Person]) -> Person:
    found = person("owner")
    assert found.says("keys", "server")[0] == 0
    return found


@pytest.fixture
def server(owner: Person) -> Iterator[Hosted]:
    with served(RunConfig(), owner.home / "lightning_async" / "server") as hosted:
        yield hosted


def line(owner: Person, *words: str) -> str:
    code, out, _ = owner.says("invite", *words)
    assert code == 0
    return out.split()[-1]


def test_from_an_invitation_to_its_revocation(owner: Person, person: type[Person], server: Hosted) -> None:
    address = server.service.address
    alice, eve = person("alice"), person("eve")
    text = line(owner, "alice", "--workers", "2")
    code, out, _ = alice.says("join", text)
    assert code == 0
    assert f"worker 'alice' may join {address}, for up to 2 workers" in out
    assert f'AsyncWANStrategy("{address}")' in out
    assert alice.says("status", address)[0] == 0
    code, _, err = eve.says("join", text)
    assert (code, "used already" in err) == (1, True)
    assert not list(eve.home.rglob("*key*"))
    assert eve.says("status", address)[0] == 1
    assert alice.says("revoke", "alice", "--server", address)[0] == 2, "a worker is no owner"
    assert owner.says("revoke", "alice")[0] == 0
    code, _, err = alice.says("status", address)
    assert (code, "revoked" in err) == (1, True)
    code, out, _ = owner.says("status", address, "--json")
    assert (code, '"revoked key"' in out) == (0, True)


def test_who_comes_without_a_name_in_the_invitation_chooses_one(
    owner: Person, person: type[Person], server: Hosted
) -> None:
    assert person("b").says("join", "-", "--name", "bob", stdin=line(owner) + "\n")[0] == 0
    text = line(owner, "--role", "observer")
    code, _, err = person("c").says("join", text, "--name", "bob")
    assert (code, "choose another name" in err) == (1, True)
    assert person("c").says("join", text, "--name", "carol")[0] == 0
    assert "carol  observer" in (owner.home / "lightning_async/server/allowed.txt").read_text()


def test_an_expired_invitation(
    owner: Person, person: type[Person], server: Hosted, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = line(owner, "--ttl", "1s")
    monkeypatch.setattr("lightning_async.transport.door.time.time", lambda: 4e9)
    code, _, err = person("late").says("join", text)
    assert (code, "has it expired" in err) == (1, True)


def test_a_join_that_was_cut_off_is_said_again(
    owner: Person, person: type[Person], server: Hosted, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server had put the key onto its list, and the answer was lost."""
    alice, text = person("alice"), line(owner, "alice")

    class Killed(BaseException):
        pass

    def killed(*args: object, **named: object) -> None:
        raise Killed

    with monkeypatch.context() as dying:
        dying.setattr("lightning_async.cli.join.replace", killed)
        with pytest.raises(Killed):
            alice.says("join", text)
    assert not list(alice.home.rglob("*.key"))
    assert alice.says("join", text)[0] == 0
    assert read_key(next(alice.home.rglob("*.key"))).name == "alice"


def test_a_key_that_the_server_may_know_is_not_thrown_away(
    owner: Person, person: type[Person], server: Hosted, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The answer to the first `join` was lost, and the second one comes while its server lets nobody in."""
    alice, text = person("alice"), line(owner, "alice")
    with monkeypatch.context() as dying:
        dying.setattr("lightning_async.cli.join.replace", lambda *args, **named: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            alice.says("join", text)
    door = server.service._reception._door
    assert door is not None
    with monkeypatch.context() as closed:
        closed.setattr(door, "knock", lambda key: False)
        code, _, err = alice.says("join", text)
        assert (code, "does not let this key in" in err) == (1, True)
    assert alice.says("join", text)[0] == 0


def test_a_place_where_no_key_can_be(person: type[Person], owner: Person, server: Hosted) -> None:
    text, alice = line(owner, "alice"), person("alice")
    for path, said in (("x" * 300, "cannot read"), ("/proc/no/such", "cannot write")):
        code, _, err = alice.says("join", text, "--key", path)
        assert (code, said in err) == (2, True), err
    assert alice.says("join", text)[0] == 0, "nobody has used the line"


def test_the_owner_stops_and_snapshots(owner: Person, server: Hosted) -> None:
    address = server.service.address
    code, _, err = owner.says("snapshot", address)
    assert (code, "no state_dir" in err) == (2, True)
    assert owner.says("stop", address)[0] == 0
    eventually(lambda: server.service.coordinator.run.ended)
    assert server.service.coordinator.run.ended == "stopped by its owner"


def test_the_owner_who_is_a_worker_too_stops_it(owner: Person, server: Hosted) -> None:
    address = server.service.address
    assert owner.says("join", line(owner, "me"))[0] == 0
    assert owner.says("stop", address)[0] == 0
    eventually(lambda: server.service.coordinator.run.ended)


def test_a_key_by_hand(owner: Person, person: type[Person], server: Hosted) -> None:
    alice, address = person("alice"), server.service.address
    public = read_key(owner.home / "lightning_async/server/owner.key").server.hex()
    code, out, _ = alice.says("keys", "worker", "alice", "--address", address, "--server-key", public)
    assert code == 0
    with (owner.home / "lightning_async/server/allowed.txt").open("a") as file:
        file.write(out.splitlines()[-1] + "\n")
    assert alice.says("status", address)[0] == 0
    assert alice.says("keys", "worker", "alice", "--address", address, "--server-key", public)[0] == 2
    assert alice.says("keys", "worker", "a", "--address", address, "--server-key", "00", "--key", "x")[0] == 2


def test_keys_are_not_made_twice(owner: Person) -> None:
    code, _, err = owner.says("keys", "server")
    assert (code, "there already" in err) == (2, True)


def test_an_invitation_needs_to_know_where_to(owner: Person, person: type[Person]) -> None:
    assert "--address" in owner.says("invite")[2]
    assert owner.says("invite", "--address", "tcp://x:1")[1].startswith("lightning-async join tcp://x:1/")
    assert "keys server" in person("nobody").says("invite", "--address", "tcp://x:1")[2]


def test_the_usual_keys_are_found_beyond_this_machine(
    owner: Person, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "nobody"))
    with pytest.raises(ConfigError, match=r"keys server.*invite"):
        host(RunConfig(), Place(address="tcp://127.0.0.2.example:0"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(owner.home))
    assert server_dir().exists()
    with host(RunConfig(), Place(address="tcp://*:0")) as hosted:
        assert hosted.service._listener.door is not None
    with host(RunConfig(), Place(address="tcp://*:0", public=True)) as hosted:
        assert hosted.service._listener.door is None
    with host(RunConfig(), Place(address="tcp://127.0.0.1:0")) as hosted:
        assert hosted.service._listener.door is None


def test_keys_from_a_file_of_options() -> None:
    _, place = configured({"keys": "~/k"}, {})
    assert place.keys == "~/k"


def test_how_long_a_line_is_good_for() -> None:
    assert [seconds(text) for text in ("90s", "30m", "24h", "7d")] == [90.0, 1800.0, 86_400.0, 604_800.0]
    for text in ("", "24", "h", "1w", "-1h", "1.5h"):
        with pytest.raises(ConfigError, match="24h"):
            seconds(text)
