"""How much of a run an embedded server keeps: from the strategy's argument to the server's own parts."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import lightning.pytorch  # noqa: F401  sets an environment variable on its first import
import pytest

from lightning_async import AsyncWANStrategy, RunConfig, StateDir
from lightning_async.cli import embedded as child
from lightning_async.errors import ConfigError
from lightning_async.strategy.embedded import EmbeddedServer


class Child:
    """Stands for the process: what it is told on its stdin."""

    def __init__(self, *_: object) -> None:
        self.stdin = io.BytesIO()
        self._quit_s = 0.0

    def _say(self, line: str) -> None:
        self.stdin.write(line.encode())


def told(monkeypatch: pytest.MonkeyPatch, state_dir: Any) -> str:
    """The first line that an embedded server gets."""
    made = Child()
    monkeypatch.setattr(EmbeddedServer, "_spawn", classmethod(lambda cls: made))
    EmbeddedServer.begin(RunConfig(), state_dir)
    return made.stdin.getvalue().decode()


@pytest.mark.parametrize("keep", [True, False])
def test_what_is_kept_gets_to_the_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, keep: bool) -> None:
    state = StateDir(str(tmp_path / "state"), keep_journal=keep, snapshot_every_s=7.0, snapshot_every_versions=3)
    with child._open(told(monkeypatch, state)) as hosted:
        keeper = hosted.service._keeper
        assert keeper is not None
        assert (keeper._prunes, keeper._every_s, keeper._every_versions) == (not keep, 7.0, 3)
        assert hosted.service._recorder._keeps is keep  # type: ignore[union-attr]


def test_a_path_alone_means_the_defaults_of_serve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with child._open(told(monkeypatch, tmp_path / "state")) as hosted:
        keeper = hosted.service._keeper
        assert keeper is not None
        assert (keeper._prunes, keeper._every_s, keeper._every_versions) == (True, 30.0, None)
    assert json.loads(told(monkeypatch, None))["state_dir"] is None


def test_the_strategy_takes_both() -> None:
    for state_dir in ("runs/first", StateDir("runs/first", keep_journal=True)):
        assert AsyncWANStrategy(state_dir=state_dir)._state_dir == state_dir


@pytest.mark.parametrize("values", [{"snapshot_every_s": 0.0}, {"snapshot_every_versions": -1}])
def test_what_cannot_be_is_said(values: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(values))):
        StateDir("x", **values)


@pytest.mark.parametrize(
    ("order", "said"), [({"publc": True}, "must be an object of"), ({"public": "no"}, "public: got 'no'")]
)
def test_an_order_that_cannot_be_is_said(order: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        child._open(json.dumps(order))
