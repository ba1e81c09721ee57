"""Small requests: Beat, Share, Fetch, Load, Status, Pardon; Enrol, Order and Probe where nobody answers them before."""

from __future__ import annotations

import hmac
from collections import Counter
from collections.abc import Iterable

from lightning_async.errors import ConfigError, PayloadError
from lightning_async.server import report, standing
from lightning_async.server.admission import Refusal
from lightning_async.server.members import Member
from lightning_async.server.run import Run
from lightning_async.telemetry import events
from lightning_async.wire import messages as m
from lightning_async.wire.frames import Envelope
from lightning_async.wire.messages import Reason
from lightning_async.wire.tensors import pack_tensors, unpack_tensors

MOST_KEYS, LONGEST_VALUE = 1024, 65536
OWNS = ":"  # between whose key a shared one is, where the server has keys (server/reception.py), and its own name
TOLD_BYTES = 1 << 20


def beat(run: Run, peer: bytes, member: Member | None, envelope: Envelope) -> m.Ack:
    """Beat: a sign of life, with the bytes that a worker has counted since it was begun."""
    beat = envelope.message
    assert isinstance(beat, m.Beat)
    if member is not None:
        count_bytes(run, member, beat.sent_bytes, beat.received_bytes)
    return run.ack()


def count_bytes(run: Run, member: Member, sent: int, received: int, last: bool = False) -> None:
    """Note what a worker has counted at its sockets; an event every TOLD_BYTES, and at its `last` word."""
    before, now = member.sent_bytes + member.received_bytes, sent + received
    member.sent_bytes, member.received_bytes = sent, received
    if last or before // TOLD_BYTES != now // TOLD_BYTES:
        run.emit(events.Traffic(time_s=run.now, worker=member.name, sent_bytes=sent, received_bytes=received))


def share(run: Run, peer: bytes, member: Member | None, envelope: Envelope) -> m.Shared | Refusal:
    """Share: the value of a key, which is the first that somebody gave it, or None as long as nobody has. Of more than
    MOST_KEYS keys the oldest is forgotten; a value of more than LONGEST_VALUE characters is refused."""
    share = envelope.message
    assert isinstance(share, m.Share)
    if share.value is not None and share.key not in run.shared:
        if len(share.value) > LONGEST_VALUE:
            return Refusal(Reason.LIMIT, f"a shared value of {len(share.value)} characters; at most {LONGEST_VALUE}")
        if len(run.shared) >= MOST_KEYS:
            del run.shared[_oldest(run.shared)]
        run.shared[share.key] = share.value
    return m.Shared(key=share.key, value=run.shared.get(share.key))


def _oldest(shared: Iterable[str]) -> str:
    """The oldest key of whoever has the most: of a launch that is long over, or of somebody who fills the board."""
    owners = Counter(key.partition(OWNS)[0] for key in shared)
    fullest = max(owners, key=lambda owner: owners[owner])
    return next(key for key in shared if key.partition(OWNS)[0] == fullest)


def fetch(run: Run, peer: bytes, member: Member | None, envelope: Envelope) -> Refusal | None:
    """Fetch: the state of the server's optimizer, for a checkpoint. Refused before there are parameters."""
    if run.stepper is None:
        return Refusal(Reason.UNREADY, "no worker has sent the first parameters yet")
    fields, payload = pack_tensors(run.stepper.state())
    run.send(peer, envelope.id, m.Moments(version=run.version, **fields), payload)
    return None


def load(run: Run, peer: bytes, member: Member | None, envelope: Envelope) -> m.Ack | Refusal:
    """Load: the server's optimizer goes on from the state in a checkpoint. Refused unless it comes from who sent the
    first parameters, before the first step, and fits; nothing has changed then."""
    load = envelope.message
    assert isinstance(load, m.Load)
    if member is None or member.name != run.initialiser or run.version != 0 or run.stepper is None:
        return Refusal(Reason.UNREADY, "an outer state is taken only from who began the run, before its first step")
    try:
        run.stepper.load(unpack_tensors(load.keys, load.shapes, load.dtypes, envelope.payload))
    except PayloadError as error:
        return Refusal(Reason.PAYLOAD, str(error))
    return run.ack()


def status(run: Run, peer: bytes, member: Member | None, envelope: Envelope) -> m.Report:
    """Status: what `lightning-async status` shows, to whoever asks."""
    return m.Report(state=report.state(run, run.now))


def pardon(run: Run, peer: bytes, member: Member | None, envelope: Envelope) -> m.Ack | Refusal:
    """Pardon: a worker's quarantine ends. Refused without the token in the server's state_dir, and for a worker that is
    in none."""
    pardon = envelope.message
    assert isinstance(pardon, m.Pardon)
    token = run.rules.private.token
    if not token or not hmac.compare_digest(token.encode(), pardon.token.encode()):
        return Refusal(Reason.ROLE, "only the server's owner may pardon, with the token in its state_dir")
    try:
        standing.pardon(run, pardon.worker)
    except ConfigError as error:
        return Refusal(Reason.PROTOCOL, str(error))
    return run.ack()


def enrol(run: Run, peer: bytes, member: Member | None, envelope: Envelope) -> Refusal:
    """Of a server without keys; one that has them answers before (server/service.py)."""
    return Refusal(Reason.KEY, "this server has no keys, so nobody needs an invitation to join it")


def order(run: Run, peer: bytes, member: Member | None, envelope: Envelope) -> Refusal:
    """Of somebody who is not the owner; the owner is obeyed before (server/service.py)."""
    return Refusal(Reason.ROLE, "only the server's owner gives orders, with an owner's key or from its state_dir")


def probe(run: Run, peer: bytes, member: Member | None, envelope: Envelope) -> Refusal:
    """A run has no clock and no line of its own to be measured; a server that has both answers before it hears of it
    (server/probing.py)."""
    return Refusal(Reason.PROTOCOL, "there is no line to be measured here")
