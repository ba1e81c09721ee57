"""`AsyncOptimizer`: the same engine for a plain PyTorch loop."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import nn

from lightning_async import links
from lightning_async.links import Link
from lightning_async.transport.keys import key_for
from lightning_async.worker.attach import Attachment
from lightning_async.worker.engine import Engine
from lightning_async.worker.leaving import leave_alone
from lightning_async.worker.line import Line
from lightning_async.worker.part import Identity
from lightning_async.worker.tampering import tampering


class AsyncOptimizer(torch.optim.Optimizer):
    """A torch optimizer that trains `module` together with the other workers of the run at `server`.

        with AsyncOptimizer(torch.optim.AdamW(model.parameters(), lr=1e-3), model, "tcp://10.0.0.5:5555") as optimizer:
            for x, y in loader:
                optimizer.zero_grad()
                loss(model(x), y).backward()
                optimizer.step()

    It joins when it is made: the model then holds the run's parameters. `param_groups` and `state` are those of the
    wrapped optimizer, so learning-rate schedulers work on either. `stop_asked` says when the run is over.

    Args:
        optimizer: any torch optimizer in update mode; in gradient mode one of `lightning_async.outer.ALLOWED`.
        module: whose parameters the optimizer trains.
        server: address of a running server, `tcp://host:port`.
        name: of this worker; by default one that nobody else has.
        link: for tests and demos, a line to the server that is worse than the real one: "cellular" (docs/networks.md).
        fallback: where to go, as long as `server` does not answer, in a network that lets only HTTP pass: "https://...".
        attack: for experiments that are marked as such, what this worker does to its updates: "sign_flip(k=10.0)".
        key: file with this worker's key (`lightning-async join` makes it); "none" for a server without keys beyond this
            machine. By default $LIGHTNING_ASYNC_KEY, or the one that was made for this server.
        batch_size: samples in a step; the mean weighs workers by the samples that their updates hold.
        claims: configuration values that must be the run's, e.g. {"local_steps": 16}.

    Raises RefusedError, UnreachableError, ConfigError.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        module: nn.Module,
        server: str,
        name: str = "",
        claims: Mapping[str, object] | None = None,
        attack: str | None = None,
        batch_size: int = 1,
        link: str | Link | None = None,
        fallback: str | None = None,
        key: str | Path | None = None,
    ) -> None:
        super().__init__(optimizer.param_groups, optimizer.defaults)
        self.param_groups, self.state = optimizer.param_groups, optimizer.state
        self._wrapped, self._batch_size = optimizer, batch_size
        given = {key: repr(value) for key, value in (claims or {}).items()}
        self._line = Line(None if link is None else links.link(link), fallback=fallback)
        identity = Identity(name=name, key=key_for(server, key))
        if identity.key is not None:
            self._line.forbid_fallback()
        self.engine = Engine(server, module, [optimizer], identity, given, world=self._line.world)
        if attack is not None:
            self.engine.tamper = tampering(attack, self.engine.name)
        try:
            self.engine.start()
            self._attachment = Attachment(self.engine)
            self.engine.arm()
        except BaseException:
            self.engine.close("failed to start")
            self._line.close()
            raise

    @property
    def stop_asked(self) -> bool:
        """Whether the server has said that the run is over."""
        return self.engine.stop_asked

    def step(self, closure: Callable[[], Any] | None = None, loss: torch.Tensor | None = None) -> Any:
        """One step of the wrapped optimizer; each round's end sends an update, each arrival is merged after a step.

        `loss`: what this step trains on, one number, for `lightning-async status`; a closure's is taken by itself.
        """
        self.engine.count_samples(self._batch_size)
        if loss is not None:
            self.engine.count_loss(loss)
        return self._wrapped.step() if closure is None else self._wrapped.step(closure=self._told(closure))

    def _told(self, closure: Callable[[], Any]) -> Callable[[], Any]:
        """`closure`, whose loss is counted."""

        def counted() -> Any:
            loss = closure()
            if isinstance(loss, torch.Tensor):
                self.engine.count_loss(loss)
            return loss

        return counted

    def state_dict(self) -> dict[str, Any]:
        return self._wrapped.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._wrapped.load_state_dict(state_dict)
        self.param_groups, self.state = self._wrapped.param_groups, self._wrapped.state

    def close(self) -> None:
        """Send what is not sent, leave, and take the newest parameters. Idempotent."""
        try:
            if self.engine.armed:
                leave_alone(self.engine, self._line.connect)
        finally:
            self._attachment.detach()
            self.engine.close()
            self._line.close()

    def __enter__(self) -> AsyncOptimizer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.close()
        else:
            self._attachment.detach()
            self.engine.close(f"raised {kind.__name__ if kind else ''}")
            self._line.close()
