"""A state_dir without a server: status, resume, replay and what-ifs, and what each of them refuses."""

from __future__ import annotations

import itertools
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from room import BUFFERS, LAYOUT, START, TENSORS, raw
from safetensors.torch import load_file

from lightning_async.cli import main as cli
from lightning_async.config import RunConfig
from lightning_async.errors import ConfigError
from lightning_async.server import Keeper
from lightning_async.server.actions import Received, Send
from lightning_async.server.history import Tale, read_run, stored_config, tell
from lightning_async.server.recorder import Recorder
from lightning_async.server.recovery import recorded
from lightning_async.wire import messages as m
from lightning_async.wire.frames import Envelope


class Served:
    """A recorded run without a socket. `with` ends it in order; `die` does not."""

    def __init__(self, folder: Path, keep: bool = True, **config: Any) -> None:
        folder.mkdir(exist_ok=True)
        self.folder, self._ids = folder, itertools.count(1)
        self.recorder: Recorder = recorded(
            RunConfig(**config), "long one", folder, time.monotonic(), run_id="an id", keeps=keep
        )
        self.run = self.recorder.coordinator.run
        self.keeper = Keeper(folder, every_versions=5, commits=self.recorder.commits, prunes=not keep)

    def ask(self, name: str, message: m.Request, *payload: Any) -> Any:
        number, now = next(self._ids), time.monotonic()
        actions = self.recorder.handle(Received(name.encode(), Envelope(number, message, payload)), now)
        self.keeper.look(self.run, now)
        return next(a.envelope.message for a in actions if isinstance(a, Send) and a.envelope.id == number)

    def begin(self, *names: str) -> Served:
        for rank, name in enumerate(names):
            hello = m.Hello(worker=name, instance="1", tensors=TENSORS, digest=LAYOUT.digest, rank=rank)
            assert isinstance(self.ask(name, hello), m.Welcome)
        if self.run.version < 0:
            assert isinstance(self.ask(names[0], m.Init(digest=LAYOUT.digest), raw(START), raw(BUFFERS)), m.Ack)
        return self

    def push(self, name: str, vector: torch.Tensor, base: int | None = None) -> Any:
        member = self.run.members.named(name)
        assert member is not None
        base = self.run.version if base is None else base
        return self.ask(name, m.Push(seq=member.last_seq + 1, base=base, digest=LAYOUT.digest), raw(vector), b"")

    def __enter__(self) -> Served:
        return self

    def __exit__(self, *_: object) -> None:
        self.keeper.close(self.run)
        self.recorder.close()


def updates(count: int, seed: int = 1) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(8, generator=generator) for _ in range(count)]


@pytest.fixture
def kept(tmp_path: Path) -> Path:
    """A run of three workers and twelve updates, of which c's are a hundred times as long, served twice."""
    for life in range(2):
        with Served(tmp_path / "state", outer="nesterov(lr=0.5, momentum=0.5)").begin("a", "b", "c") as served:
            for i, u in enumerate(updates(6, life)):
                assert served.push("abc"[i % 3], u * (100 if i % 3 == 2 else 1)).accepted
    return tmp_path / "state"


def said(capsys: pytest.CaptureFixture[str], *words: str, code: int = 0) -> str:
    assert cli.main([str(word) for word in words]) == code
    read = capsys.readouterr()
    return read.err if code == 2 else read.out


def test_status_reads_a_folder_without_a_server(kept: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = said(capsys, "status", "--state", str(kept))
    assert "<Server v12 | workers" in text
    assert "run 'long one'" in text
    assert "give the address of a server, or --state" in said(capsys, "status", code=2)
    assert "there is no run in" in said(capsys, "status", "--state", str(kept / "nothing"), code=2)


def test_reading_does_not_change_it(kept: Path) -> None:
    def names() -> dict[str, int]:
        return {
            p.name: p.stat().st_size for p in kept.rglob("*") if p.is_file() and not p.name.endswith(("-shm", "-wal"))
        }

    before = names()
    first = read_run(kept)
    assert torch.equal(read_run(kept).run.stepper.store.parameters, first.run.stepper.store.parameters)  # type: ignore[union-attr]
    assert names() == before
    with Served(kept, outer="nesterov(lr=0.5, momentum=0.5)") as served:
        assert served.run.version == 12
        assert read_run(kept).run.version == 12, "beside a running server too"


def test_resume_says_what_it_would_serve(kept: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = said(capsys, "resume", "--state", str(kept), "--check")
    assert "<Server v12" in text
    assert "nesterov(lr=0.5, momentum=0.5)" in text
    config, name = stored_config(kept)
    assert (config.outer, name) == ("nesterov(lr=0.5, momentum=0.5)", "long one")
    assert "there is no run" in said(capsys, "resume", "--state", str(kept.parent), "--check", code=2)


def test_resume_cuts_what_is_damaged_only_when_told_to(kept: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "gave up" in said(capsys, "resume", "--state", str(kept), "--cut", "1000", "--check")
    last = read_run(kept).run.version
    assert last == 12


def test_replay_verifies_every_version(kept: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    out = tmp_path / "run.safetensors"
    text = said(capsys, "replay", str(kept), "--out", str(out))
    assert "version 12 after record" in text
    assert "13 versions verified, all as recorded" in text
    tensors = load_file(out)
    store = read_run(kept).run.store
    assert store is not None
    assert torch.equal(torch.cat([tensors["w"].flatten(), tensors["b"]]), store.published)
    assert {"norm.mean", "norm.var"} <= tensors.keys()
    assert "0 from" in said(capsys, "replay", str(kept), "--compare", str(out))


def test_replay_until_a_version_and_into_a_checkpoint(
    kept: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    out = tmp_path / "some" / "run.ckpt"
    assert "version 5 after record" in said(capsys, "replay", str(kept), "--until", "5", "--out", str(out))
    loaded = torch.load(out, weights_only=True)
    assert loaded["async_wan"] == {"version": 5}
    assert loaded["state_dict"]["w"].shape == (2, 3)
    assert "over 4 of 4 tensors" in said(capsys, "replay", str(kept), "--compare", str(out))


def test_a_version_that_the_run_never_came_to_is_said(
    kept: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    out = tmp_path / "at-99.ckpt"
    read = said(capsys, "replay", kept, "--until", 99, "--out", out, code=2)
    assert "--until 99: the recorded run ends at version 12" in read
    assert not out.exists()


def test_replay_notices_what_is_not_as_recorded(
    kept: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from lightning_async.server.store import Store

    mark = Store.mark
    monkeypatch.setattr(Store, "mark", lambda self: mark(self) + (self.version == 7))
    assert "DIFFERS from what was recorded: record" in said(capsys, "replay", str(kept), code=1)


LOSS = """
def loss(tensors):
    before = float(tensors["w"].square().sum())
    tensors["w"].zero_()
    return before

def broken(tensors):
    return tensors["v"]
"""


def test_replay_says_the_loss_of_what_was_and_of_what_if(
    kept: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The function gets copies: what it does to them is not in what is written afterwards."""
    (tmp_path / "judge_of_replays.py").write_text(LOSS)
    monkeypatch.syspath_prepend(tmp_path)
    out = tmp_path / "run.safetensors"
    recorded = float(final(kept)[:6].square().sum())
    loss = ("--loss", "judge_of_replays:loss")
    assert f"loss {recorded:.6g}\n" in said(capsys, "replay", str(kept), *loss, "--out", str(out))
    assert float(load_file(out)["w"].square().sum()) == pytest.approx(recorded)
    other = float(final(kept, without=["c"])[:6].square().sum())
    assert f"loss {other:.6g}, of the recorded {recorded:.6g}\n" in said(
        capsys, "replay", str(kept), "--without", "c", *loss
    )
    text = said(capsys, "replay", str(kept), "--loss", "judge_of_replays:broken", code=2)
    assert "--loss judge_of_replays:broken failed on version 12: KeyError('v')" in text
    assert "--loss: cannot import" in said(capsys, "replay", str(kept), "--loss", "nowhere:loss", code=2)


def final(folder: Path, **tale: Any) -> torch.Tensor:
    """Where a tale ends."""
    one = Tale(tale.pop("changes", {}), frozenset(tale.pop("without", ())))
    for told in tell(folder):
        one.take(told)
    assert one.coordinator is not None
    assert one.coordinator.run.store is not None
    return one.coordinator.run.store.published.clone()


def test_a_tale_without_changes_is_the_run(kept: Path) -> None:
    store = read_run(kept).run.store
    assert store is not None
    assert torch.equal(final(kept), store.published)


def test_without_a_worker_it_is_the_run_that_never_had_it(kept: Path, tmp_path: Path) -> None:
    for life in range(2):
        with Served(tmp_path / "other", outer="nesterov(lr=0.5, momentum=0.5)").begin("a", "b") as served:
            for i, u in enumerate(updates(6, life)):
                if i % 3 != 2:
                    served.push("abc"[i % 3], u)
    assert torch.equal(final(kept, without=["c"]), final(tmp_path / "other"))


def test_without_the_worker_that_gave_the_first_parameters(kept: Path) -> None:
    ours = final(kept, without=["a"])
    assert not torch.equal(ours, final(kept))
    assert torch.isfinite(ours).all()


def test_under_a_robust_rule_the_loud_worker_is_not_heard(kept: Path, capsys: pytest.CaptureFixture[str]) -> None:
    start = START
    calm = final(kept, changes={"aggregation": "median", "quorum": 3})
    assert float((calm - start).norm()) < 0.2 * float((final(kept) - start).norm())
    text = said(capsys, "replay", str(kept), "--aggregation", "median", "--quorum", "3")
    assert "13 versions verified" in text
    assert "what if: <Server v4" in text
    assert "took 12 updates, refused: none" in text
    assert "of the way that these have gone" in text


def test_a_worker_that_was_never_there_cannot_be_left_out(kept: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "--without d: got no such worker; expected one of a, b, c" in said(
        capsys, "replay", str(kept), "--without", "a", "--without", "d", code=2
    )


def test_what_has_not_moved_is_said_and_no_cosine_is_beyond_one(kept: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "cosine of the two ways: 1.0000" in said(capsys, "replay", str(kept), "--quorum", "1")
    waits = said(capsys, "replay", str(kept), "--aggregation", "median", "--quorum", "5")
    assert "100.0% of the way that these have gone\nthe what-if has not moved" in waits
    assert "nan" not in waits


def test_a_tighter_staleness_refuses_and_a_looser_one_takes_what_was_refused(tmp_path: Path) -> None:
    with Served(tmp_path / "state", staleness="fixed(bound=2)").begin("a", "b") as served:
        for i, u in enumerate(updates(8)):
            served.push("a", u)
            served.push("b", u, base=max(0, served.run.version - (1 if i < 4 else 4)))
    told = list(tell(tmp_path / "state"))
    assert sum(not receipt.accepted for one in told for receipt in one.receipts) == 4
    tight, loose = Tale({"staleness": "fixed(bound=0)"}, frozenset()), Tale({"staleness": "unbounded"}, frozenset())
    for one in tell(tmp_path / "state"):
        tight.take(one)
        loose.take(one)
    assert tight.refused["stale"] == 8
    assert not loose.refused
    assert loose.accepted == 16


def test_a_pruned_journal_cannot_be_replayed_from_the_start_and_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with Served(tmp_path / "state", keep=False).begin("a") as served:
        for u in updates(40):
            served.push("a", u)
            assert served.recorder.commits.wait(served.recorder.submitted, 60.0)
    assert read_run(tmp_path / "state").run.version == 40
    text = said(capsys, "replay", str(tmp_path / "state"))
    assert "version 40 after record" in text, "from its oldest snapshot on"
    for snapshot in (tmp_path / "state").glob("snapshot-*"):
        for file in snapshot.iterdir():
            file.unlink()
        snapshot.rmdir()
    assert "--keep-journal" in said(capsys, "replay", str(tmp_path / "state"), code=2)


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (("--aggregation", "krum(f=3)", "--quorum", "2"), "can never satisfy"),
        (("--staleness", "strange"), "unknown staleness policy"),
        (("--compare", "/nowhere.ckpt"), "cannot read /nowhere.ckpt"),
        (("--out", "/proc/none/x.safetensors"), "cannot write /proc/none/x.safetensors"),
    ],
)
def test_what_cannot_be_replayed_is_said(
    kept: Path, words: tuple[str, ...], text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert text in said(capsys, "replay", str(kept), *words, code=2)


def test_another_configuration_is_refused_with_the_differences(kept: Path) -> None:
    with pytest.raises(ConfigError, match=r"outer is 'nesterov\(lr=0.5, momentum=0.5\)' .* 'sgd\(lr=1.0\)' here"):
        Served(kept)
