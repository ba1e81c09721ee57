"""What a key may do: asked about every message of a server with keys, before the coordinator sees it.

The coordinator knows names, and this is why it may believe them: a key bears its own name and no other, so a name, its
sequence numbers and its one place in a quorum belong to one key. What is refused here never reaches the run or its
journal.
"""

from __future__ import annotations

from lightning_async.server.admission import Refusal
from lightning_async.server.members import Member
from lightning_async.transport.allowed import REVOKED, STRANGER, Caller
from lightning_async.transport.door import Door
from lightning_async.wire import messages as m
from lightning_async.wire.messages import Reason
from lightning_async.wire.parts import Drop, Have

READS = (m.Pull, m.Beat, m.Leave, m.Fetch, m.Status, m.Probe, Have, Drop)  # what everybody on the list may


class Gate:
    """The rules of `door`'s list."""

    def __init__(self, door: Door) -> None:
        self.door = door

    def check(self, peer: bytes, message: m.Message) -> Refusal | None:
        """Why this message of this peer is refused, None when it is not."""
        caller = self.door.caller(peer)
        text = _wrong(caller, message)
        if not text:
            return None
        self.door.blame(peer, _kind(caller))
        return Refusal(Reason.KEY, text)

    def is_owner(self, peer: bytes) -> bool:
        return self.door.caller(peer).role == "owner"

    def is_out(self, member: Member) -> bool:
        """Whether this member, as it is in the run, could not come in again as the list is now."""
        again = m.Hello(worker=member.name, instance=member.instance, role=member.role)
        return bool(_wrong(self.door.caller(member.peer), again))


def _kind(caller: Caller) -> str:
    return {"": "unknown key", REVOKED: "revoked key"}.get(caller.role, f"not allowed to {caller.role}")


def _wrong(caller: Caller, message: m.Message) -> str:
    """What is wrong with it, empty for nothing."""
    if caller is STRANGER:
        return "" if isinstance(message, m.Enrol) else "this key is not on the server's list: join with an invitation"
    if caller.role == REVOKED:
        return f"the key of {caller.name!r} was revoked by the server's owner: it takes no part any more"
    if isinstance(message, (*READS, m.Enrol)):
        return ""
    if isinstance(message, m.Hello):
        return _misnamed(caller, message)
    if isinstance(message, m.Share) and message.value is None:
        return ""
    if caller.role == "owner" and isinstance(message, (m.Order, m.Pardon)):
        return ""
    if caller.role == "worker" and not isinstance(message, m.Order):
        return ""
    return f"{caller.name!r} is {caller.role!r} here, which may not {type(message).__name__}"


def _misnamed(caller: Caller, hello: m.Hello) -> str:
    own, separator, number = hello.worker.partition("/")
    if hello.role == "worker" and caller.role != "worker":
        return f"{caller.name!r} is {caller.role!r} here, and no worker"
    if own != caller.name or (separator and not number):
        return f"this key is {caller.name!r} and bears no other name; got {hello.worker[:80]!r}"
    if hello.role == "worker" and separator and not (number.isascii() and number.isdigit() and _below(number, caller)):
        return (
            f"the key of {caller.name!r} bears {caller.workers} workers at a time; got {hello.worker[:80]!r}. Ask the "
            "server's owner for more (the last number of its line in allowed.txt)"
        )
    return ""


def _below(number: str, caller: Caller) -> bool:
    return len(number) < 6 and str(int(number)) == number and 0 < int(number) < caller.workers
