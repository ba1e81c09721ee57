"""The list of live workers, which is kept until one comes or goes, against a plain look at every member."""

from __future__ import annotations

import random

from lightning_async.server.members import Members
from lightning_async.wire.messages import Hello
from lightning_async.wire.session import State


def test_the_live_workers_are_what_a_look_at_everybody_finds():
    rng, members = random.Random(0), Members()
    for turn in range(600):
        name = f"w{rng.randrange(12)}"
        known = members.named(name)
        if known is None or not known.alive:
            role = rng.choice(["worker", "worker", "observer"])
            hello = Hello(worker=name, instance=str(turn), role=role, digest="d")
            members.enter(hello, str(turn).encode(), float(turn)).state = State.READY
        elif rng.random() < 0.4:
            members.leave(known)
        else:
            known.barred_until = rng.choice([None, 7])
        assert members.workers() == [member for member in members if member.counts]
        assert members.voters() == [member for member in members if member.counts and not member.quarantined]
        if rng.random() < 0.05:
            gone = next((member for member in members if not member.alive), None)
            if gone is not None:
                gone.state = State.READY
                members.revive(gone)
            assert members.workers() == [member for member in members if member.counts]
