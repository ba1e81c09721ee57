"""What becomes of the updates that a worker has sent, once the server has said: accepted, refused, or forgotten."""

from __future__ import annotations

import logging

from lightning_async.wire.messages import Reason
from lightning_async.worker.guard import Guard
from lightning_async.worker.holdings import Holdings
from lightning_async.worker.parcels import Forgotten, Outcome
from lightning_async.worker.part import Round
from lightning_async.worker.replica import Replica

log = logging.getLogger(__name__)


class Settler:
    """Brings `replica` and the round that runs up to date with outcomes.

    `refusal` is the last one, (reason, detail). `submit`: the run's.
    """

    def __init__(self, replica: Replica, guard: Guard, holdings: Holdings) -> None:
        self._replica, self._guard, self._holdings = replica, guard, holdings
        self._diverged = 0
        self.refusal = ("", "")
        self.submit = "update"

    def settle(self, outcome: Outcome | Forgotten, round_: Round) -> bool:
        """False when `round_` stands on what was thrown away, and must be too.

        Raises what Guard.check_finite raises, for a worker that sends NaN again and again."""
        if isinstance(outcome, Forgotten):
            for seq in [seq for seq in self._replica.pending if outcome.after < seq <= outcome.last]:
                self._replica.take_back(seq)
            units = self._holdings.forgotten(outcome.after, outcome.last)
            round_.units += units if self.submit == "update" else []
        elif outcome.accepted:
            self._diverged = 0
            self._holdings.accepted(outcome.seq)
            self._replica.settle(outcome.seq, outcome.version)
        else:
            return self._refused(outcome, round_)
        return True

    def _refused(self, outcome: Outcome, round_: Round) -> bool:
        log.warning("update %d was refused [%s]: %s", outcome.seq, outcome.reason, outcome.detail)
        self.refusal = (outcome.reason, outcome.detail)
        spoiled = outcome.reason == Reason.NOT_FINITE.value
        if spoiled or outcome.reason == Reason.LEASE.value:
            self._diverged += spoiled
            self._replica.discard(outcome.seq)
            self._holdings.give_up(outcome.seq, round_.units, spoiled)
            self._guard.check_finite(self._diverged)
            return False
        if outcome.kept:
            self._replica.give_up(outcome.seq)
            round_.regain(0, 0, self._holdings.take_back(outcome.seq))
        elif self.submit == "update":
            self._replica.take_back(outcome.seq)
            round_.regain(outcome.steps, outcome.samples, self._holdings.take_back(outcome.seq))
        else:
            self._holdings.give_up(outcome.seq, [], spoiled=False)
        return True
