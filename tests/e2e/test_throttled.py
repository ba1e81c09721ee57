"""`auto` over a line that is really slow: a TCP tunnel that lets so many bytes per second up, and no more.

How fast the line is follows from what this worker's rounds take on this machine at this moment, so that no test here
depends on how fast that is.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import pytest
import torch
from eventually import eventually
from torch import Tensor, nn
from tunnel import Tunnel

from lightning_async.codecs import codec
from lightning_async.config import RunConfig
from lightning_async.server import ServerThread
from lightning_async.telemetry import Memory, events
from lightning_async.worker.choosing import SHARE, Chooser, Uploaded
from lightning_async.worker.optimizer import AsyncOptimizer
from lightning_async.worker.requests import status

pytestmark = [pytest.mark.usefixtures("unhurried"), pytest.mark.slow]
LADDER = codec("auto").ladder
assert LADDER is not None
SPECS, BITS = LADDER.specs, LADDER.bits
START, ROUND_S, LONGEST_S = 6, 0.2, 240.0


class Line:
    """A worker with `auto` behind a tunnel, and what it has noted of each upload."""

    def __init__(self, tunnel: Tunnel, sink: Memory, monkeypatch: pytest.MonkeyPatch) -> None:
        torch.manual_seed(0)
        self.tunnel, self._sink = tunnel, sink
        self.seen: list[tuple[Uploaded, Chooser]] = []
        self.model = nn.Linear(500, 400)
        self.optimizer = AsyncOptimizer(
            torch.optim.SGD(self.model.parameters(), lr=0.01), self.model, tunnel.url, name="w"
        )
        self.engine = self.optimizer.engine
        plain = Chooser.after
        monkeypatch.setattr(Chooser, "after", lambda chooser, upload: self._noted(plain(chooser, upload), upload))

    def _noted(self, chooser: Chooser, upload: Uploaded) -> Chooser:
        self.seen.append((upload, chooser))
        return chooser

    @property
    def rung(self) -> int:
        """The one that the next upload will be of."""
        return self.seen[-1][1].rung if self.seen else START

    @property
    def compute_s(self) -> float:
        return self.seen[-1][1].compute_s

    def bytes(self, rung: int) -> float:
        return BITS[rung] * self.engine.shared.layout.d / 8

    def round(self) -> None:
        """ROUND_S of computing that needs no processor, such as a GPU's, and a step."""
        threading.Event().wait(ROUND_S)
        self.optimizer.zero_grad()
        self._loss().backward()
        self.optimizer.step()

    def _loss(self) -> Tensor:
        inputs = torch.randn(16, 500)
        return (self.model(inputs) - inputs[:, :400].roll(1, 1)).square().mean()

    def until(self, ready: Callable[[], object]) -> None:
        """Rounds until it is so."""

        def round_and_look() -> object:
            self.round()
            return ready()

        eventually(round_and_look, LONGEST_S)

    def hides(self) -> bool:
        """The last three uploads were there before the round was over, and are sparser than the first."""
        last = self.seen[-3:]
        hidden = all(upload.took_s < chooser.compute_s and upload.rung > START for upload, chooser in last)
        return hidden and self.rung > START

    def is_slow(self) -> bool:
        """The last upload took longer than it should of a round."""
        return self.seen[-1][0].took_s > SHARE * self.compute_s

    @property
    def changes(self) -> list[events.CodecChanged]:
        return [event for event in self._sink.events if isinstance(event, events.CodecChanged)]

    def slow_down(self, rounds: float) -> None:
        """From now on the first rung's upload takes as long as this many rounds compute (in none of which the machine
        stood still)."""
        compute_s = min(chooser.compute_s for _, chooser in self.seen[-5:])
        self.tunnel.up_rate = self.bytes(START) / (rounds * compute_s)


@pytest.fixture
def line(monkeypatch: pytest.MonkeyPatch) -> Iterator[Line]:
    sink = Memory()
    config = RunConfig(local_steps=1, compression="auto", beat_s=0.2, patience_s=600.0)
    with ServerThread(config, sinks=[sink]) as server, Tunnel(server.address) as tunnel:
        made = Line(tunnel, sink, monkeypatch)
        with made.optimizer:
            made.until(lambda: made.seen and made.rung < START)  # loading what an upload needs looks like a slow line
            yield made
            tunnel.up_rate = None


def test_uploads_get_sparser_on_a_slow_line_until_they_hide_and_denser_when_it_is_free_again(line: Line) -> None:
    line.slow_down(rounds=4.0)
    line.until(lambda: line.rung > START)
    line.until(line.hides)

    line.tunnel.up_rate = None
    line.until(lambda: line.rung < START)

    line.until(lambda: len(line.changes) >= 3)
    line.engine.flush()
    changes = line.changes
    assert [change.before for change in changes[1:]] == [change.after for change in changes[:-1]]
    steps = [SPECS.index(change.after) - SPECS.index(change.before) for change in changes]
    assert max(steps) > 0, "sparser"
    assert min(steps) == -1, "denser, one rung at a time"
    assert status(line.engine)["workers"]["w"]["codec"] == changes[-1].after


def test_a_line_too_slow_for_any_rung_gets_the_sparsest(line: Line) -> None:
    line.slow_down(rounds=12.0)
    line.until(lambda: line.rung == len(SPECS) - 1)
    line.until(lambda: line.seen[-1][0].rung == line.rung == len(SPECS) - 1 and line.is_slow())
