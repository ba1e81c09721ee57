"""How long a step waits for more workers than its quorum, where the run leaves that to us (`grace_s="auto"`). Pure.

More updates make a better step, and waiting costs nothing as long as those who have sent theirs would not have noticed:
a worker trains on while its update travels, and looks for the new version when its next round ends. So a step waits
while somebody is expected within half of the shortest next round of those whose updates are there; who is later than
a quarter of its usual round is not expected any more. (Decoupled DiLoCo, arXiv 2604.21428, gives its grace window the
same measure, the slack of overlapped communication; the two shares are ours.)

Rule of this file: only the server's clock counts, and only what the journal keeps (see pacing.py).
"""

from __future__ import annotations

from collections.abc import Sequence

from lightning_async.server.members import Member

SLACK = 0.5  # of a round: until then nobody who has sent looks for the new version
TOLERANCE = 0.25  # of its usual round that a worker may be late


def worth_waiting(here: Sequence[Member], missing: Sequence[Member], now: float) -> bool:
    """Whether one of `missing` is expected before one of `here`, whose updates wait, would notice the wait."""
    ends = [end for member in here if (end := _after(member, SLACK)) is not None]
    until = min(ends, default=now)
    return now < until and any(_expected(member, until, now) for member in missing)


def _expected(member: Member, until: float, now: float) -> bool:
    due, latest = _after(member, 1.0), _after(member, 1.0 + TOLERANCE)
    return due is not None and latest is not None and due <= until and now < latest


def _after(member: Member, rounds: float) -> float | None:
    """When so many of its usual rounds will have passed since its last update; None when they are not known."""
    since, usual = member.pace.since, member.pace.round_s.value
    return None if since is None or usual is None else since + rounds * usual
