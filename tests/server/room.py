"""A coordinator in virtual time, spoken to by hand-made envelopes."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_async.codecs import codec
from lightning_async.config import RunConfig
from lightning_async.layout import read_manifest
from lightning_async.server import Coordinator
from lightning_async.server.actions import Action, Emit, Event, Gone, Received, Send, Tick
from lightning_async.server.private import NOTHING, Private
from lightning_async.telemetry import events
from lightning_async.wire import messages as m
from lightning_async.wire.frames import Envelope, Frame

TENSORS: list[list[Any]] = [
    ["w", [2, 3], "float32", "parameter"],
    ["b", [2], "float32", "parameter"],
    ["norm.mean", [2], "float32", "buffer"],
    ["norm.var", [2], "float32", "buffer"],
]
LAYOUT = read_manifest(TENSORS)
START = torch.arange(8, dtype=torch.float32) / 8
BUFFERS = torch.tensor([0.0, 0.0, 1.0, 1.0])


def raw(vector: Tensor) -> Frame:
    """The bytes of a float32 vector."""
    return vector.to(torch.float32).numpy().tobytes()


def floats(frame: Frame) -> Tensor:
    return torch.frombuffer(bytearray(frame), dtype=torch.float32) if len(frame) else torch.empty(0)


class Room:
    """One run and its time. `say` returns the answer to what was said; everything else lands in `mail` and `seen`."""

    def __init__(self, private: Private = NOTHING, **config: Any) -> None:
        self.coordinator = Coordinator(RunConfig(**config), "test", private)
        self.run = self.coordinator.run
        self.now = 100.0
        self.mail: dict[bytes, list[Envelope]] = {}
        self.seen: list[events.Event] = []
        self._ids = itertools.count(1)

    def handle(self, event: Event) -> list[Action]:
        actions = self.coordinator.handle(event, self.now)
        for action in actions:
            if isinstance(action, Send):
                self.mail.setdefault(action.peer, []).append(action.envelope)
            elif isinstance(action, Emit):
                self.seen.append(action.event)
        return actions

    def ask(self, name: str, message: m.Message, payload: Sequence[Frame] = ()) -> Envelope | None:
        """The answer to `message`, None when it is not there yet."""
        request = next(self._ids)
        self.handle(Received(name.encode(), Envelope(request, message, tuple(payload))))
        found = [envelope for envelope in self.mail.get(name.encode(), []) if envelope.id == request]
        assert len(found) <= 1, "two answers to one request"
        return found[0] if found else None

    def say(self, name: str, message: m.Message, payload: Sequence[Frame] = ()) -> Any:
        """The answer's message."""
        answer = self.ask(name, message, payload)
        assert answer is not None, "no answer yet"
        return answer.message

    def wait(self, seconds: float, step_s: float = 0.1) -> None:
        """Let time pass, tick by tick."""
        end = self.now + seconds
        while self.now < end - 1e-9:
            self.now = min(end, self.now + step_s)
            self.handle(Tick())

    def gone(self, name: str) -> None:
        self.handle(Gone(name.encode()))

    def hello(self, name: str, **changes: Any) -> Any:
        values = {"worker": name, "instance": "1", "tensors": TENSORS, "digest": LAYOUT.digest, **changes}
        if values["tensors"] is not TENSORS and "digest" not in changes:
            values["digest"] = read_manifest(values["tensors"]).digest
        return self.say(changes.pop("peer", name), m.Hello(**{k: v for k, v in values.items() if k != "peer"}))

    def begin(self, *names: str, optimizers: Sequence[Any] = ()) -> Room:
        """All join, the first gives the parameters."""
        for rank, name in enumerate(names):
            assert isinstance(self.hello(name, rank=rank), m.Welcome)
        init = m.Init(digest=LAYOUT.digest, optimizers=list(optimizers))
        assert isinstance(self.say(names[0], init, (raw(START), raw(BUFFERS))), m.Ack)
        return self

    def push(
        self, name: str, vector: Tensor, seq: int | None = None, buffers: Tensor | None = None, **changes: Any
    ) -> Any:
        """The receipt for an update; by default the worker's next one, from the newest version."""
        member = self.run.members.named(name)
        assert member is not None
        values = {"seq": member.last_seq + 1 if seq is None else seq, "base": self.run.version} | changes
        pieces = LAYOUT.fragments(self.run.config.fragments)
        if pieces and len(vector) == LAYOUT.d:  # by turns
            values.setdefault("group", int(values["seq"]) % len(pieces))
            vector = LAYOUT.part(vector, pieces[int(values["group"])])
        made = codec(self.run.config.compression)
        payload, _ = made.encode(vector, made.init(vector.numel()))
        frames = (bytes(payload), raw(buffers) if buffers is not None else b"")
        return self.say(name, m.Push(**{"digest": LAYOUT.digest, **values}), frames)

    def state(self) -> dict[str, Any]:
        """What `status` says."""
        state: dict[str, Any] = self.say("observer of the tests", m.Status()).state
        return state

    def pull(self, name: str, have: int = -1, wait_s: float = 0.0) -> Envelope | None:
        return self.ask(name, m.Pull(have=have, wait_s=wait_s))

    @property
    def parameters(self) -> Tensor:
        """The true parameters, [8]."""
        assert self.run.store is not None
        return self.run.store.parameters

    @property
    def buffers(self) -> Tensor:
        assert self.run.store is not None
        return self.run.store.buffers

    def events(self, kind: type) -> list[Any]:
        return [event for event in self.seen if isinstance(event, kind)]
