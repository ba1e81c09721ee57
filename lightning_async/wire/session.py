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
    Echo,
    Enrol,
    Enrolled,
    Fetch,
    Hello,
    Init,
    Lease,
    Leave,
    Load,
    Message,
    Moments,
    Order,
    Params,
    Pardon,
    Probe,
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


def _stay(state: State, *requests: type) -> dict[type, State]:
    return dict.fromkeys(requests, state)


_EXIT: Mapping[type, State] = {Hello: State.JOINED, Leave: State.GONE}
_ANYBODY = (Status, Pardon, Enrol, Order, Probe)

# (state, request) -> state after the request was done. Hello leads to the state that `welcomed` reads from its reply.
TRANSITIONS: Mapping[State, Mapping[type, State]] = {
    State.NEW: {Hello: State.JOINED, **_stay(State.NEW, *_ANYBODY)},
    State.JOINED: {**_EXIT, **_stay(State.JOINED, Pull, Beat, Lease, Share, *_ANYBODY)},
    State.INITIALISING: {
        **_EXIT,
        Init: State.READY,
        **_stay(State.INITIALISING, Pull, Beat, Lease, Share, *_ANYBODY),
    },
    # Init stays allowed in READY: its Ack may have been lost, and then it is asked again.
    State.READY: {**_EXIT, **_stay(State.READY, Init, Push, Pull, Beat, Lease, Share, Fetch, Load, *_ANYBODY)},
    State.OBSERVER: {**_EXIT, **_stay(State.OBSERVER, Pull, Beat, Share, Fetch, *_ANYBODY)},
    State.GONE: {**_EXIT, **_stay(State.GONE, *_ANYBODY)},
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
    Fetch: Moments,
    Load: Ack,
    Status: Report,
    Pardon: Ack,
    Enrol: Enrolled,
    Order: Ack,
    Probe: Echo,
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
