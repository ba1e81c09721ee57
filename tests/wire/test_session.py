"""The table of the conversation is whole, and its three functions read it."""

from __future__ import annotations

import pytest

from lightning_async.wire import messages as m
from lightning_async.wire.session import REFUSALS, REPLY, STARTED, TRANSITIONS, State, advance, fits, welcomed

WELCOME = m.Welcome(run="r", version=0, last_seq=0, config={}, initialise=False, workers=1, beat_s=1.0)
PUSH = m.Push(seq=1, base=0, digest="")
HELLO = m.Hello(worker="w", instance="i")
INIT = m.Init(digest="")


def test_every_state_and_request_stands_in_the_tables():
    assert set(TRANSITIONS) == set(REFUSALS) == set(State)
    assert {kind for row in TRANSITIONS.values() for kind in row} == set(m.REQUESTS) == set(REPLY)
    assert set(REPLY.values()) == set(m.REPLIES) - {m.Refused}
    assert set(STARTED.values()) <= set(State)


@pytest.mark.parametrize("state", State)
def test_hello_and_status_are_always_allowed(state):
    assert advance(state, HELLO) is State.JOINED
    assert advance(state, m.Status()) is state


@pytest.mark.parametrize(
    ("state", "request_", "answer"),
    [
        (State.NEW, PUSH, m.Reason.STRANGER),
        (State.GONE, m.Pull(), m.Reason.STRANGER),
        (State.JOINED, PUSH, m.Reason.UNREADY),
        (State.JOINED, INIT, m.Reason.UNREADY),
        (State.INITIALISING, PUSH, m.Reason.UNREADY),
        (State.INITIALISING, INIT, State.READY),
        (State.READY, INIT, State.READY),
        (State.READY, PUSH, State.READY),
        (State.OBSERVER, PUSH, m.Reason.ROLE),
        (State.OBSERVER, m.Lease(stream="s", length=1, count=1), m.Reason.ROLE),
        (State.OBSERVER, m.Load(keys=[], shapes=[], dtypes=[]), m.Reason.ROLE),
        (State.OBSERVER, m.Pull(), State.OBSERVER),
        (State.READY, m.Leave(), State.GONE),
        (State.GONE, m.Leave(), State.GONE),
        (State.READY, m.Ack(version=1), m.Reason.PROTOCOL),
    ],
)
def test_what_a_request_leads_to(state, request_, answer):
    assert advance(state, request_) is answer


@pytest.mark.parametrize(
    ("hello", "change", "state"),
    [
        ({}, {}, State.READY),
        ({}, {"version": -1}, State.JOINED),
        ({}, {"version": -1, "initialise": True}, State.INITIALISING),
        ({"role": "observer"}, {"version": -1}, State.OBSERVER),
    ],
)
def test_where_a_welcome_leads(hello, change, state):
    welcome = m.Welcome(**(WELCOME.__dict__ | change))
    assert welcomed(m.Hello(worker="w", instance="i", **hello), welcome) is state


def test_which_reply_fits():
    assert fits(PUSH, m.Receipt(seq=1, accepted=True, version=1))
    assert fits(PUSH, m.Refused(reason="stale", detail=""))
    assert not fits(PUSH, m.Ack(version=1))
    assert not fits(m.Ack(version=1), m.Ack(version=1))
