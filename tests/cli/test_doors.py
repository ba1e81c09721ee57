"""Where a server listens and who may come in, as `serve` puts it together."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import pytest
from certificates import certificate
from eventually import ENOUGH_S

from lightning_async import transport
from lightning_async.cli.doors import is_far, listening
from lightning_async.cli.place import Place
from lightning_async.errors import ConfigError
from lightning_async.transport.several import Several


def told(tmp_path: Path, text: str = "some random text\n", mode: int = 0o600) -> str:
    path = tmp_path / "token.txt"
    path.write_text(text)
    path.chmod(mode)
    return str(path)


def test_several_addresses_with_a_token_for_http(tmp_path: Path) -> None:
    address = "tcp://127.0.0.1:0, http://127.0.0.1:0,https://127.0.0.1:0"
    place = Place(address=address, http_token=told(tmp_path), http_certificate=str(certificate()))
    with closing(listening(place)) as listener:
        assert isinstance(listener, Several)
        assert [address.partition(":")[0] for address in listener.addresses] == ["tcp", "http", "https"]
        known = {"token": "some random text"}
        for address, options in zip(
            listener.addresses, ({}, known, {**known, "authority": certificate()}), strict=True
        ):
            with closing(transport.connect(address, **options)) as end:
                end.send([b"hello"])
                assert listener.receive(ENOUGH_S) is not None


def test_one_address_is_what_it_was() -> None:
    with closing(listening(Place(address="tcp://127.0.0.1:0"))) as listener:
        assert not isinstance(listener, Several)


@pytest.mark.parametrize(
    ("address", "far"),
    [
        ("tcp://127.0.0.1:5555", False),
        ("tcp://localhost:5555", False),
        ("tcp://[::1]:5555,https://127.0.0.1:8080", False),
        ("memory://here", False),
        ("tcp://0.0.0.0:5555", True),
        ("tcp://10.0.0.7:5555", True),
        ("tcp://some.host:5555", True),
        ("tcp://127.0.0.1:5555, https://10.0.0.7:8080/RPC2", True),
    ],
)
def test_whether_workers_come_from_other_machines(address: str, far: bool) -> None:
    assert is_far(Place(address=address)) is far


def test_when_one_cannot_be_used_none_is_left_open() -> None:
    with closing(transport.listen("tcp://127.0.0.1:0")) as taken:
        free = "http://127.0.0.1:0"
        with pytest.raises(ConfigError, match="cannot listen"):
            listening(Place(address=f"{free},{taken.address}"))


@pytest.mark.parametrize(("text", "mode", "says"), [("\n", 0o600, "holds no token"), ("x", 0o644, "others on this")])
def test_a_token_that_cannot_be_used(text: str, mode: int, says: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=says):
        listening(Place(address="http://127.0.0.1:0", http_token=told(tmp_path, text, mode)))


def test_a_server_with_keys_has_no_http(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lightning_async.cli.main import main

    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    assert main(["keys", "server"]) == 0
    keys = str(tmp_path / "lightning_async" / "server")
    with pytest.raises(ConfigError, match="takes nobody over HTTP"):
        listening(Place(address="tcp://127.0.0.1:0,http://127.0.0.1:0", keys=keys))


def test_where_one_address_needs_keys_all_have_the_same_door(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else somebody on this machine could call himself by a ZeroMQ routing id that ends in another's public key."""
    from lightning_async.cli.main import main

    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    assert main(["keys", "server"]) == 0
    with closing(listening(Place(address="tcp://127.0.0.1:0,tcp://*:0"))) as listener:
        assert isinstance(listener, Several)
        assert listener.door is not None
        assert all(each.door is listener.door for each in listener._all)
        assert len(listener.door.cuts) == 2
    with closing(transport.listen("tcp://127.0.0.1:0")) as plain:
        keyed = transport.listen("tcp://127.0.0.1:0", keys=tmp_path / "lightning_async" / "server")
        with closing(keyed), pytest.raises(ConfigError, match="all the same door"):
            Several([plain, keyed])
