"""The conversation as a table (docs/protocol.md, section 4): which request is allowed when, and which reply fits it.

Pure data and three tiny functions. The server asks `advance` before it does anything for a member; the worker's link
asks `fits` before it believes a reply. Rule of this file: whether a request *succeeds* is decided elsewhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum

from lightning_async.wire.messages import (
    Ack,
    Beat,
    Hello,
    Init,
    Lease,
    Leave,
    Message,
    Params,
    Pull,
    Push,
    Ranges,
    Reason,
    Receipt,
    Refused,
    Report,
    Share,
    Shared,
    Status,
    Welcome,
)


class State(str, Enum):
    """What the server knows of a peer."""

    NEW = "new"  # has not said Hello, or is not known any more
    JOINED = "joined"  # in; the run has no parameters yet and somebody else was asked for them
    INITIALISING = "initialising"  # in; asked to send Init
    READY = "ready"  # in; the run has parameters
    OBSERVER = "observer"  # reads only
    GONE = "gone"  # said Leave, or expired


# (state, request) -> state after the request was done. Hello leads to the state that `welcomed` reads from its reply.
TRANSITIONS: Mapping[State, Mapping[type, State]] = {
    State.NEW: {Hello: State.JOINED, Status: State.NEW},
    State.JOINED: {
        Hello: State.JOINED,
        Pull: State.JOINED,
        Beat: State.JOINED,
        Lease: State.JOINED,
        Share: State.JOINED,
        Status: State.JOINED,
        Leave: State.GONE,
    },
    State.INITIALISING: {
        Hello: State.JOINED,
        Init: State.READY,
        Pull: State.INITIALISING,
        Beat: State.INITIALISING,
        Lease: State.INITIALISING,
        Share: State.INITIALISING,
        Status: State.INITIALISING,
        Leave: State.GONE,
    },
    State.READY: {
        Hello: State.JOINED,
        Init: State.READY,  # its Ack was lost and it asks again
        Push: State.READY,
        Pull: State.READY,
        Beat: State.READY,
        Lease: State.READY,
        Share: State.READY,
        Status: State.READY,
        Leave: State.GONE,
    },
    State.OBSERVER: {
        Hello: State.JOINED,
        Pull: State.OBSERVER,
        Beat: State.OBSERVER,
        Share: State.OBSERVER,
        Status: State.OBSERVER,
        Leave: State.GONE,
    },
    State.GONE: {Hello: State.JOINED, Status: State.GONE, Leave: State.GONE},
}

# Why a request that its state does not list is refused.
REFUSALS: Mapping[State, Reason] = {
    State.NEW: Reason.STRANGER,
    State.JOINED: Reason.UNREADY,
    State.INITIALISING: Reason.UNREADY,
    State.READY: Reason.PROTOCOL,
    State.OBSERVER: Reason.ROLE,
    State.GONE: Reason.STRANGER,
}

# When the run has its first parameters, these members become READY without a request of theirs.
STARTED: Mapping[State, State] = {State.JOINED: State.READY, State.INITIALISING: State.READY}

# request -> its reply when it was done or, for Push, also when it was not. Refused may answer every request.
REPLY: Mapping[type, type] = {
    Hello: Welcome,
    Init: Ack,
    Push: Receipt,
    Pull: Params,
    Beat: Ack,
    Leave: Ack,
    Lease: Ranges,
    Share: Shared,
    Status: Report,
}


def advance(state: State, request: Message) -> State | Reason:
    """The state after `request`, or the reason why it is refused in `state`. A message that is no request: PROTOCOL."""
    if type(request) not in REPLY:
        return Reason.PROTOCOL
    return TRANSITIONS[state].get(type(request), REFUSALS[state])


def welcomed(hello: Hello, welcome: Welcome) -> State:
    """The state of a peer whose `hello` was answered by `welcome`."""
    if hello.role == "observer":
        return State.OBSERVER
    if welcome.initialise:
        return State.INITIALISING
    return State.READY if welcome.version >= 0 else State.JOINED


def fits(request: Message, reply: Message) -> bool:
    """Whether `reply` may answer `request`."""
    return type(reply) is Refused or REPLY.get(type(request)) is type(reply)
