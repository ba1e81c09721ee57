"""A virtual clock: events in the order of their time, and actors, programs that sleep and wait in that time.

An actor is an ordinary function in a thread of its own, so the code that it runs may block anywhere, as a user's script
does. Exactly one thread runs at any moment: who blocks lets time go on by itself, event after event, until an event
wakes somebody. So the order of everything is that of the events, equal times in the order in which they were put down,
and the same events give the same run.

Rule of this file: nothing here knows what is simulated.
"""

from __future__ import annotations

import heapq
import itertools
import math
import threading
from collections.abc import Callable

from lightning_async.errors import CallerError

STACK_BYTES = 2**21  # of an actor's thread; torch needs more than the smallest


class Killed(BaseException):
    """Raised inside an actor where it sleeps or waits: it is to end now."""


class Actor:
    """A program that lives in virtual time. Made by `Clock.spawn`."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.gate = threading.Lock()
        self.gate.acquire()
        self.killed = self.ended = False
        self.turn = 0  # how often it was resumed: an event meant for an earlier wait is void


Event = Callable[[], Actor | None]  # whom it wakes


class Clock:
    """Virtual seconds from 0. `run` lets them pass; whatever fails in an event or an actor is raised there."""

    def __init__(self) -> None:
        self.now = 0.0
        self._events: list[tuple[float, int, Event]] = []
        self._order = itertools.count()
        self._actors: dict[Actor, threading.Thread] = {}
        self._main = Actor("main")
        self._running = self._main
        self._over = self._closing = False
        self._failure: BaseException | None = None

    def read(self) -> float:
        """The time, for whoever takes a clock."""
        return self.now

    def at(self, time: float, action: Callable[[], object]) -> None:
        """Do `action()` at `time`, or now if that is past. It must not block."""

        def event() -> None:
            action()

        self._put(time, event)

    def _put(self, time: float, event: Event) -> None:
        if math.isnan(time):
            raise CallerError("got NaN for the time of an event")
        heapq.heappush(self._events, (max(time, self.now), next(self._order), event))

    def spawn(self, name: str, body: Callable[[], None]) -> Actor:
        """An actor that begins `body` now."""
        actor = Actor(name)
        before = threading.stack_size(STACK_BYTES)
        try:
            self._actors[actor] = threading.Thread(target=self._live, args=(actor, body), name=name, daemon=True)
            self._actors[actor].start()
        finally:
            threading.stack_size(before)
        self._put(self.now, self._waker(actor))
        return actor

    def _live(self, actor: Actor, body: Callable[[], None]) -> None:
        actor.gate.acquire()
        actor.turn += 1
        self._running = actor
        try:
            if not actor.killed:
                body()
        except Killed:
            pass
        except BaseException as error:
            self._failure = self._failure or error
        actor.ended = True
        self._over = self._over or self._closing
        del self._actors[actor]
        self._go_on(None)

    def sleep(self, seconds: float) -> None:
        """Let the running actor sleep. Raises Killed."""
        self.wait(self.now + seconds)

    def wait(self, until: float = math.inf) -> None:
        """Let the running actor wait for a `wake`, until `until` at most. Raises Killed."""
        me = self._running
        if me.killed:
            raise Killed
        if until < math.inf:
            self._put(until, self._waker(me))
        self._go_on(me)
        if me.killed:
            raise Killed

    def wake(self, actor: Actor) -> None:
        """End the `wait` in which `actor` is now."""
        self._put(self.now, self._waker(actor))

    def kill(self, actor: Actor) -> None:
        """Let `actor` end where it waits. Idempotent."""
        if not actor.ended and not actor.killed:
            actor.killed = True
            self.wake(actor)

    @property
    def actor(self) -> Actor:
        """Who is running; `main` outside of actors."""
        return self._running

    def _waker(self, actor: Actor) -> Event:
        turn = actor.turn
        return lambda: actor if actor.turn == turn and not actor.ended else None

    def run(self, until: float = math.inf) -> None:
        """Let time pass until `stop`, until nothing is left to happen, or to `until`, whichever comes first."""
        self._over = False
        if until < math.inf:
            self._put(until, self._waker(self._main))
        self._go_on(self._main)
        if self._failure is not None:
            failure, self._failure = self._failure, None
            raise failure

    def stop(self) -> None:
        """End `run` after the event at hand."""
        self._over = True

    def close(self) -> None:
        """Kill every actor and wait until their threads have ended. Raises the first thing that one raised."""
        self._closing = True
        failures: list[BaseException] = []
        while self._actors:
            actor, thread = next(iter(self._actors.items()))
            actor.killed = True
            self.wake(actor)
            try:
                self.run()
            except BaseException as error:
                failures.append(error)
            thread.join()
        if failures:
            raise failures[0]

    def _go_on(self, me: Actor | None) -> None:
        """Let events happen until one wakes somebody; return when it is the turn of `me` again (None: at once)."""
        actor = self._next()
        if actor is not me:
            actor.gate.release()
            if me is None:
                return
            me.gate.acquire()
        assert me is not None
        me.turn += 1
        self._running = me

    def _next(self) -> Actor:
        """Whom the next event wakes; main when the run is over."""
        while self._events and not self._over and self._failure is None:
            time, _, event = heapq.heappop(self._events)
            self.now = time
            try:
                actor = event()
            except BaseException as error:
                self._failure = error
                break
            if actor is not None:
                return actor
        return self._main
