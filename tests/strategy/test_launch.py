"""What a launch tells its processes: an address that nobody else gets, and a name that no other launch has."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Iterator
from urllib.parse import urlsplit

import lightning.pytorch  # noqa: F401  sets an environment variable on its first import
import pytest

from lightning_async.strategy import launch
from lightning_async.transport import listen


@pytest.fixture
def _no_launch(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(launch, "_launched", None)
    yield
    if launch._launched is not None and launch._launched.held is not None:
        os.close(launch._launched.held)


@pytest.mark.skipif(sys.platform != "linux", reason="only there a port can be kept for somebody")
@pytest.mark.usefixtures("_no_launch")
def test_the_port_of_a_launch_is_kept_for_its_server() -> None:
    environment: dict[str, str] = {}
    with launch.told("", environment):
        address = environment[launch.SERVER]
    place = urlsplit(address)
    for _ in range(2):  # also between two fits
        with socket.socket() as thief, pytest.raises(OSError, match="already in use"):
            thief.bind((place.hostname, place.port))
        with socket.socket() as probe:
            assert probe.connect_ex((place.hostname, place.port)) != 0, "nobody listens yet"
        server = listen(address)
        assert server.address == address
        server.close()


@pytest.mark.usefixtures("_no_launch")
def test_a_later_launch_lets_the_first_ones_port_go() -> None:
    environment: dict[str, str] = {}
    with launch.told("", environment):
        first, held = dict(environment), launch._launched.held
    with launch.told("tcp://127.0.0.1:5555", environment):
        second = dict(environment)
    assert first[launch.SERVER] != second[launch.SERVER] == "tcp://127.0.0.1:5555"
    assert first[launch.GROUP] != second[launch.GROUP]
    assert not environment
    if held is not None:
        with pytest.raises(OSError, match="Bad file"):
            os.fstat(held)
