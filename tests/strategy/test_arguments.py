"""The strategy's arguments: every way to write them means the same, and what contradicts the run is said."""

from __future__ import annotations

from typing import Any

import pytest
from lightning.pytorch import Trainer
from models import STEPS, Net, fit, loader, trainer

from lightning_async import AsyncWANStrategy
from lightning_async.aggregation import trimmed_mean
from lightning_async.codecs import codec, topk
from lightning_async.config import RunConfig
from lightning_async.errors import ConfigError, RefusedError
from lightning_async.outer import nesterov
from lightning_async.server import ServerThread
from lightning_async.staleness import policy, weight


def by_path(path: str, **values: Any) -> dict[str, Any]:
    """As YAML gives it."""
    return {"class_path": f"lightning_async.{path}", "init_args": values}


WAYS: dict[str, list[Any]] = {
    "compression": ["topk(density=0.1)", topk(density=0.1), by_path("codecs.topk", density=0.1)],
    "download_compression": ["fp16", codec("fp16"), by_path("codecs.fp16")],
    "aggregation": ["trimmed_mean(f=1)", trimmed_mean(f=1), by_path("aggregation.trimmed_mean", f=1)],
    "outer": ["nesterov(lr=0.5)", nesterov(lr=0.5), by_path("outer.nesterov", lr=0.5)],
    "staleness": ["fixed(bound=7)", 7, policy(7), by_path("staleness.fixed", bound=7)],
    "weight": ["polynomial(a=0.7)", weight("polynomial(a=0.7)"), by_path("staleness.polynomial", a=0.7)],
    "quorum": ["all"],
    "quarantine_below": [0.25],
    "patience_s": [60.0],
    "local_steps": [5],
    "submit": ["gradient"],
    "total_steps": [100],
}


@pytest.mark.parametrize(("name", "ways"), WAYS.items(), ids=WAYS)
def test_every_way_to_write_an_argument_means_the_same(name: str, ways: list[Any]) -> None:
    more = {"quorum": 3} if name == "aggregation" else {}
    configs = [AsyncWANStrategy(**{name: way}, **more)._given.config(workers=3) for way in ways]
    assert len(set(map(repr, configs))) == 1
    assert getattr(configs[0], name) != getattr(RunConfig(), name)


def test_a_mode_is_short_for_its_arguments() -> None:
    sync = AsyncWANStrategy(staleness=0, quorum="all")._given
    assert AsyncWANStrategy(mode="sync")._given == AsyncWANStrategy(mode="sync", staleness=0)._given == sync
    assert AsyncWANStrategy(mode="async")._given == AsyncWANStrategy()._given


def test_nested_members_by_path() -> None:
    inner = [by_path("aggregation.clip_norm", c=2.0), {"class_path": "lightning_async.aggregation.mean"}]
    written = AsyncWANStrategy(aggregation=by_path("aggregation.pipeline", members=inner))
    assert written._given == AsyncWANStrategy(aggregation="pipeline(clip_norm(2.0), mean())")._given
    codecs = by_path("codecs.error_feedback", inner=by_path("codecs.topk", density=0.02), beta=0.5)
    written = AsyncWANStrategy(compression=codecs)
    assert written._given == AsyncWANStrategy(compression="error_feedback(topk(density=0.02), beta=0.5)")._given


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"compression": "topkk"}, "unknown codec 'topkk'; known: .*topk"),
        (
            {"compression": {"class_path": "os.system", "init_args": {"command": "true"}}},
            "unknown class_path 'os.system'",
        ),
        ({"compression": {"class_path": "topk", "init_args": {"depth": 1}}}, "topk.*depth"),
        ({"compression": {"class_pth": "topk"}}, "expected a spec string, or class_path and init_args"),
        ({"outer": "nesterov(lr=-1.0)"}, "outer lr: got -1.0"),
        ({"staleness": -1}, "-1"),
        ({"mode": "sync", "staleness": "adaptive"}, "mode='sync' means staleness"),
        ({"link": "pigeon"}, "unknown link 'pigeon'"),
        ({"mode": "bulk"}, "mode: got 'bulk'"),
        ({"quorum": 0}, "quorum: got 0"),
        ({"quorum": "most"}, "quorum: got 'most'"),
        ({"local_steps": 0}, "local_steps: got 0"),
        ({"submit": "both"}, "submit: got 'both'"),
        ({"submit": "gradient", "local_steps": 4}, "got local_steps=4, expected 1"),
        ({"data": "mine"}, "data: got 'mine'"),
        ({"total_steps": 0}, "total_steps: got 0"),
    ],
    ids=str,
)
def test_what_cannot_be_is_said_at_once(given: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        AsyncWANStrategy(**given)


def test_contradictions_with_a_remote_run_name_the_argument_and_both_values() -> None:
    with ServerThread(RunConfig(local_steps=4, outer="nesterov(lr=0.7)")) as server:
        with pytest.raises(RefusedError) as refused:
            fit(Net, AsyncWANStrategy(server.address, local_steps=8, outer="sgd", compression="none"))
        assert "local_steps: this worker was given 8, the run has 4" in str(refused.value)
        assert "outer: this worker was given 'sgd(lr=1.0)', the run has 'nesterov(lr=0.7, momentum=0.9)'" in str(
            refused.value
        )
        assert "compression" not in str(refused.value)
        fit(Net, AsyncWANStrategy(server.address, local_steps=4, outer=nesterov(0.7)), max_epochs=1)
        assert server.coordinator.run.steps_total == STEPS


def test_local_steps_follow_the_mode() -> None:
    assert AsyncWANStrategy()._given.config(1).local_steps == 16
    assert AsyncWANStrategy(submit="gradient")._given.config(1).local_steps == 1


def test_the_run_decides_what_was_not_given() -> None:
    with ServerThread(RunConfig(submit="gradient", local_steps=1)) as server:
        fit(Net, AsyncWANStrategy(server.address), max_epochs=1)
        assert server.coordinator.run.steps_total == STEPS


def test_a_state_dir_beside_a_remote_server_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"state_dir belongs to the server; tcp://127\.0\.0\.1:5"):
        fit(Net, AsyncWANStrategy("tcp://127.0.0.1:5", state_dir="here"))


def test_the_address_may_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    with ServerThread(RunConfig()) as server:
        monkeypatch.setenv("LIGHTNING_ASYNC_SERVER", server.address)
        fit(Net, AsyncWANStrategy(), max_epochs=1)
        assert server.coordinator.run.steps_total == STEPS


def test_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    with ServerThread(RunConfig()) as server:
        monkeypatch.setenv("LIGHTNING_ASYNC_SERVER", server.address)
        ours = trainer("async_wan", max_epochs=1)
        assert isinstance(ours.strategy, AsyncWANStrategy)
        ours.fit(Net(), loader())
        assert server.coordinator.run.steps_total == STEPS


def test_making_a_strategy_does_nothing() -> None:
    """No socket, thread or process: the fixtures of this suite would find them."""
    Trainer(strategy=AsyncWANStrategy("tcp://127.0.0.1:5"), logger=False, accelerator="cpu", devices=1)


def test_the_repr_shows_the_run() -> None:
    seen = []

    class Looking(Net):
        def on_train_batch_end(self, *_: Any) -> None:
            seen.append(repr(self.trainer.strategy))

    strategy = AsyncWANStrategy("tcp://127.0.0.1:5", local_steps=4)
    assert "server tcp://127.0.0.1:5 | local_steps=4" in repr(strategy)
    with ServerThread(RunConfig(local_steps=4)) as server:
        fit(Looking, AsyncWANStrategy(server.address, name="me"), max_epochs=1)
        assert f"Worker me of {server.address} | v" in seen[-1]
