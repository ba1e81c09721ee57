"""What only a server's owner has: the file in the state_dir, the validation function, and the right to pardon."""

from __future__ import annotations

import stat
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import trusted_update
from eventually import ENOUGH_S

from lightning_async.cli import main as cli
from lightning_async.cli.hosting import Hosted, host
from lightning_async.cli.owner import FILE, imported, private_of, token_in
from lightning_async.cli.place import Place
from lightning_async.cli.serve import configured
from lightning_async.config import RunConfig
from lightning_async.errors import ConfigError
from lightning_async.layout import read_manifest
from lightning_async.server.members import Member
from lightning_async.telemetry import events
from lightning_async.wire import messages as m
from lightning_async.wire.session import State

TENSORS = [["w", [2], "float32", "parameter"]]


@pytest.fixture
def hosted(tmp_path: Path) -> Iterator[Hosted]:
    ending: list[str] = []
    server = host(RunConfig(), Place(address="tcp://127.0.0.1:0", state_dir=str(tmp_path / "state")))
    thread = threading.Thread(target=server.serve, args=(lambda: "".join(ending), lambda: True), daemon=True)
    with server:
        thread.start()
        yield server
        ending.append("done")
        server.service.wake()
        thread.join(ENOUGH_S)
        assert not thread.is_alive()


def barred(server: Hosted, name: str) -> Member:
    """A worker in quarantine, put there by hand before anybody asks."""
    member = Member(name, "1", "worker", "", 0, b"p", "", 0.0, 0.0, state=State.GONE, barred_until=100)
    server.service.coordinator.run.members.remember(member)
    return member


def test_the_owners_file_is_made_once_and_is_for_the_owner_alone(tmp_path: Path) -> None:
    first = private_of(tmp_path / "state", None)
    assert private_of(tmp_path / "state", None) == first
    assert stat.S_IMODE((tmp_path / "state" / FILE).stat().st_mode) == 0o600
    assert token_in(tmp_path / "state") == first.token != ""
    assert first.token not in repr(first)
    assert private_of(tmp_path / "other", None).token != first.token
    assert private_of(None, None).token == ""
    assert private_of(None, None).secret != private_of(None, None).secret


def test_a_server_killed_while_it_makes_the_file_is_started_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    def killed(*args: object, **named: object) -> None:
        raise Killed

    for moment in ("os.fsync", "os.replace"):
        with monkeypatch.context() as dying:
            dying.setattr(moment, killed)
            with pytest.raises(Killed):
                private_of(tmp_path, None)
        assert not (tmp_path / "owner.json").exists()
    assert private_of(tmp_path, None) == private_of(tmp_path, None)


def test_an_owners_file_that_cannot_be_read_is_said(tmp_path: Path) -> None:
    (tmp_path / FILE).write_text("{}")
    with pytest.raises(ConfigError, match="remove it to get a new one"):
        private_of(tmp_path, None)
    with pytest.raises(ConfigError, match="give the state_dir that the server was started with"):
        token_in(tmp_path / "elsewhere")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("trusted_update", 'expected "module:function"'),
        ("no_such_module:f", "cannot import"),
        ("trusted_update:nobody", "cannot import"),
        ("trusted_update:NOT_A_FUNCTION", "expected a function"),
    ],
)
def test_a_validation_function_that_is_none_is_refused(text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        imported(text)


def test_zeno_is_served_with_a_function_from_the_file_and_refused_without(tmp_path: Path) -> None:
    config, place = configured({"aggregation": "zeno(rho=0.1)", "validation": "trusted_update:ones"}, {})
    assert imported(str(place.validation)) is trusted_update.ones
    host(config, replace(place, address="memory://zeno-with")).service.close()
    with pytest.raises(ConfigError, match="got no validation function"):
        host(config, replace(place, address="memory://zeno-without", validation=None))


def test_the_owner_pardons_on_the_command_line(hosted: Hosted, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    member = barred(hosted, "w 7")
    words = ["pardon", hosted.service.address, "w 7", "--state-dir", str(tmp_path / "state")]
    assert cli.main(words) == 0
    assert "w 7 is in again" in capsys.readouterr().out
    assert not member.quarantined
    assert cli.main(words) == 2
    assert "in quarantine are: nobody" in capsys.readouterr().err


def test_nobody_else_does(hosted: Hosted, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    member = barred(hosted, "w")
    private_of(tmp_path / "mine", None)
    assert cli.main(["pardon", hosted.service.address, "w", "--state-dir", str(tmp_path / "mine")]) == 2
    assert "only the server's owner gives orders" in capsys.readouterr().err
    assert member.quarantined


@pytest.mark.parametrize("token", ["", "right"])
def test_without_the_token_there_is_no_pardon_and_with_it_an_event(token: str) -> None:
    from lightning_async.server import Coordinator
    from lightning_async.server.actions import Emit, Received, Send
    from lightning_async.server.private import Private
    from lightning_async.wire.frames import Envelope

    coordinator = Coordinator(RunConfig(), "run", Private(token=token))
    coordinator.run.layout = read_manifest(TENSORS)
    coordinator.run.members.remember(Member("w", "1", "worker", "", 0, b"", "", 0.0, 0.0, State.GONE, barred_until=5))
    for given in ("", "wrong", "right"):
        actions = coordinator.handle(Received(b"x", Envelope(1, m.Pardon(worker="w", token=given))), 1.0)
        answers = [action.envelope.message for action in actions if isinstance(action, Send)]
        allowed = bool(token) and given == token
        assert isinstance(answers[0], m.Ack if allowed else m.Refused)
        told = [a.event for a in actions if isinstance(a, Emit) and isinstance(a.event, events.Released)]
        assert [(event.worker, event.why) for event in told] == ([("w", "pardoned")] if allowed else [])
