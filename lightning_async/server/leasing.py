"""Who trains on which samples: Lease, and what of it an update has done (scheduling/ledger.py keeps the books).

A worker numbers its leases, so that a lost answer is given again, and says with each what it still holds, so that what
it gave up goes back. An update names the leased samples in it. They are booked as applied when a version is made of it;
until then they can come back: the worker goes, a filter drops the update, or the lease is overdue and nothing else is
left of its pass. A refused update's samples stay with the worker, for what it held goes with its next one.
"""

from __future__ import annotations

from lightning_async.errors import PayloadError
from lightning_async.scheduling import Held, Ledger, Range
from lightning_async.scheduling import ranges as rows
from lightning_async.scheduling.ledger import WORN_OUT
from lightning_async.server import market, pacing
from lightning_async.server.admission import Refusal
from lightning_async.server.buffer import Slot
from lightning_async.server.members import Member
from lightning_async.server.run import Run
from lightning_async.telemetry import events
from lightning_async.wire import messages as m
from lightning_async.wire.frames import Envelope
from lightning_async.wire.messages import Reason

MOST_STREAMS, MOST_SAMPLES, MOST_PASSES = 16, 10**7, 1000
SHARES = 2  # near the end of a pass a lease is one of so many parts, for each live worker, of what is left of it
MOST_ROWS, MOST_NOTED = 2**16, 64  # ranges that a message may name; that a refused update's are counted up to
NOT_FINITE, DROPPED = 4, 1  # wear (Ledger): two updates of a range that were not finite set it aside


def lease(run: Run, peer: bytes, member: Member | None, envelope: Envelope) -> m.Ranges | Refusal:
    """Lease: `count` samples of a stream at most, fewer near the end of a pass; none is no error. First comes back what
    the worker holds no more, what was of no use to it, and what others have held for too long. A `number` that was
    answered before gets its answer again. Refused: a number before the last one, another length than the stream's,
    ranges that cannot be, and more than the limits above."""
    lease = envelope.message
    assert isinstance(lease, m.Lease)
    assert member is not None
    ledger = find(run, lease)
    if isinstance(ledger, Refusal):
        return ledger
    number, granted = member.granted.get(lease.stream, (0, None))
    if lease.number > 0 and lease.number == number and granted is not None:
        return granted
    if 0 < lease.number < number:
        return Refusal(Reason.SEQUENCE, f"lease number {lease.number} after {number}; send the next one")
    try:
        holds = None if lease.holds is None else _read(lease.holds, ledger)
        spoiled, unstepped = _read(lease.spoiled, ledger), _read(lease.unstepped, ledger)
    except ValueError as error:
        return Refusal(Reason.PROTOCOL, str(error))
    if lease.count + ledger.held(member.name) > min(MOST_SAMPLES, MOST_PASSES * ledger.length):
        return Refusal(Reason.LIMIT, f"more than {MOST_PASSES} passes of {ledger.length} samples held by one worker")
    run.streams[lease.stream], member.bytes_per_s = ledger, max(0.0, lease.bytes_per_s)
    ledger.least[member.name] = min(lease.batch, max(1, ledger.length // 2)) if lease.whole else 1
    _tell(run, lease.stream, member.name, ledger.give_back(member.name, unstepped, "no step", WORN_OUT), "no step")
    _take_back(run, lease.stream, ledger, member, holds, spoiled)
    ranges = _granted(run, ledger, member, lease)
    member.granted[lease.stream] = (lease.number, ranges)
    return ranges


def find(run: Run, lease: m.Lease) -> Ledger | Refusal:
    """The ledger of a Lease that makes sense; one that is not in the run yet is not put there."""
    if not (lease.length > 0 and 0 < lease.count <= MOST_SAMPLES and 0 < lease.batch <= MOST_SAMPLES):
        return Refusal(Reason.LIMIT, f"a lease of {lease.count} samples; 1 to {MOST_SAMPLES} are given")
    if any(n is not None and not -MOST_SAMPLES < n < MOST_SAMPLES for n in (lease.epoch, lease.epochs, lease.upto)):
        return Refusal(Reason.LIMIT, f"a pass or an epoch beyond {MOST_SAMPLES}")
    ledger = run.streams.get(lease.stream)
    if ledger is None and len(run.streams) >= MOST_STREAMS:
        return Refusal(Reason.LIMIT, f"more than {MOST_STREAMS} data streams in one run")
    ledger = ledger or Ledger(lease.length)
    if ledger.length != lease.length:
        return Refusal(
            Reason.DATASET,
            f"a data set of {lease.length} samples; this run shares one of {ledger.length}. "
            'Give every worker the same data, or data="own" to train on its own',
        )
    return ledger


def _read(values: list[object], ledger: Ledger) -> list[Range]:
    if len(values) > MOST_ROWS:
        raise ValueError(f"{len(values)} ranges in one message; at most {MOST_ROWS} are read")
    return rows.merged(rows.read(row, ledger.length) for row in values)


def _take_back(
    run: Run, stream: str, ledger: Ledger, member: Member, holds: list[Range] | None, spoiled: list[Range]
) -> None:
    """What the worker gives up, and what others have held for too long while nothing else is left of its pass."""
    name = member.name
    _tell(run, stream, name, ledger.give_back(name, spoiled, Reason.NOT_FINITE.value, NOT_FINITE), "not finite")
    if holds is not None:
        _tell(run, stream, name, ledger.keep(name, holds, "given back", run.now), "given back")
    for worker, gone in ledger.expire(lambda worker, held: worker != name and _overdue(run, worker, held), "overdue"):
        _lose(run, stream, worker, gone, "overdue")


def _overdue(run: Run, worker: str, held: Held) -> bool:
    """Whether a lease has lasted longer than its worker's rounds, and all that it holds, explain."""
    member = run.members.named(worker)
    if member is None or not member.alive:
        return _away(run, worker)
    samples = sum(ledger.held(worker) for ledger in run.streams.values())
    return run.now - held.at > pacing.lease_s(run, member, samples)


def _away(run: Run, worker: str) -> bool:
    """Whether it has gone; of an earlier life of the server, whether it has not come back in time."""
    member = run.members.named(worker)
    return member is None or not (member.alive or run.now - member.seen_at <= run.config.patience_s)


def _granted(run: Run, ledger: Ledger, member: Member, lease: m.Lease) -> m.Ranges:
    upto, final = lease.upto, False
    if upto is None and lease.epoch is not None and lease.epochs is not None:
        ledger.fits = [worker for worker in ledger.fits if not _away(run, worker)]
        upto, final = ledger.epoch(member.name, lease.epoch, lease.epochs)
    last = run.config.epochs
    if last is not None and (upto is None or upto >= last - 1):
        upto, final = last - 1, True
    count = lease.count if upto is None else _fair(run, ledger, lease, upto)
    unit = market.chosen(run, ledger, member, lease, count, upto) if count else None
    ledger.asked[member.name] = run.now
    given = ledger.lease(member.name, unit, run.now) if unit is not None else []
    passed_over = ledger.left(upto) if count and not given and upto is not None else 0
    return m.Ranges(
        ranges=[list(row) for row in given],
        seed=run.config.seed,
        upto=upto,
        final=final,
        out=passed_over + (0 if upto is None else ledger.out(upto, but=member.name)),
    )


def _fair(run: Run, ledger: Ledger, lease: m.Lease, upto: int) -> int:
    """Of an epoch that ends, ever smaller leases, so that all come to its end at about the same time (guided
    self-scheduling: Polychronopoulos and Kuck 1987); whole batches but for the last of the pass."""
    left, live = ledger.left(upto), len(run.members.workers())
    share = left if live < 2 else left // (SHARES * live)
    count = min(lease.count, max(lease.batch, share // lease.batch * lease.batch))
    if count >= left:
        count = left
    return count // lease.batch * lease.batch if lease.whole else count


def units_of(run: Run, push: m.Push) -> tuple[tuple[str, Range], ...]:
    """(stream, range) of what a Push names. Raises PayloadError for what cannot be read."""
    named: dict[str, list[Range]] = {}
    if len(push.units) > MOST_ROWS:
        raise PayloadError(f"`units`: {len(push.units)} ranges in one message; at most {MOST_ROWS} are read")
    for row in push.units:
        if not isinstance(row, list) or not row or not isinstance(row[0], str) or row[0] not in run.streams:
            raise PayloadError(f"`units`: got {str(row)[:60]}, expected [stream, pass, start, stop] of a leased stream")
        try:
            named.setdefault(row[0], []).append(rows.read(row[1:], run.streams[row[0]].length))
        except ValueError as error:
            raise PayloadError(f"`units`: {error}") from error
    return tuple((stream, row) for stream, own in named.items() for row in rows.merged(own))


def check(run: Run, member: Member, push: m.Push) -> Refusal | None:
    """Whether the samples in a push are this worker's to apply."""
    try:
        units = units_of(run, push)
    except PayloadError as error:
        return Refusal(Reason.PROTOCOL, str(error))
    for stream, own in rows.by_stream(units).items():
        missing = run.streams[stream].missing(member.name, own)
        if missing:
            number, start, stop = missing[0]
            return Refusal(
                Reason.LEASE,
                f"{rows.size(missing)} samples of {stream!r}, the first at {start} to {stop - 1} of pass {number}, "
                "were given to another worker since; this update is thrown away. Nothing is to be done",
            )
    return None


def claim(run: Run, slot: Slot) -> None:
    """The update in `slot` was accepted."""
    member = run.members.named(slot.worker)
    if member is not None:
        market.observe(run, member, rows.size(row for _, row in slot.units))
    for stream, own in rows.by_stream(slot.units).items():
        run.streams[stream].claim(slot.worker, own, run.now)


def settle(run: Run, slot: Slot, dropped: str) -> None:
    """A version was made of `slot`; or none, because it was `dropped`."""
    for stream, own in rows.by_stream(slot.units).items():
        if dropped:
            run.streams[stream].drop(slot.worker, own, "dropped", DROPPED)
            _tell(run, stream, slot.worker, own, "dropped")
        else:
            run.streams[stream].apply(slot.worker, own)


def through(run: Run) -> str:
    """Why the run is over, if it is to make so many passes and has; empty otherwise."""
    wanted, streams = run.config.epochs, run.streams.values()
    if wanted is None or not streams or not all(ledger.through(wanted) for ledger in streams):
        return ""
    rest = max(ledger.left(wanted - 1) for ledger in streams)
    return f"{wanted} of {wanted} passes are applied" + (f", but for {rest} samples: no whole batch" if rest else "")


def note_refused(run: Run, member: Member, push: m.Push, reason: str) -> None:
    """What a refusal has delayed: the samples stay with the worker, which sends them again or gives them up.
    Of more than MOST_NOTED ranges the journal keeps none, so they are not counted."""
    if len(push.units) > MOST_NOTED:
        return
    try:
        units = units_of(run, push)
    except PayloadError:
        return
    for stream, own in rows.by_stream(units).items():
        run.streams[stream].delayed(member.name, own, reason)


def release(run: Run, worker: str, why: str) -> None:
    """Everything that `worker` has leased comes back."""
    for stream, ledger in run.streams.items():
        _lose(run, stream, worker, ledger.release(worker, why), why)


def _lose(run: Run, stream: str, worker: str, ranges: list[Range], why: str) -> None:
    member = run.members.named(worker)
    if member is not None and why != "left":
        member.lost += rows.size(ranges)
    _tell(run, stream, worker, ranges, why)


def _tell(run: Run, stream: str, worker: str, ranges: list[Range], why: str) -> None:
    if ranges:
        samples = rows.size(ranges)
        run.emit(events.Returned(time_s=run.now, worker=worker, stream=stream, samples=samples, why=why))
