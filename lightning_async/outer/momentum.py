"""SGD, Nesterov momentum, and Nesterov momentum that advances once in several arrivals."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from lightning_async import spec
from lightning_async.arguments import number, whole
from lightning_async.outer.base import Outer, State, Update, counter, strips, zeros


def sgd(lr: float = 1.0) -> Outer:
    """x <- x - lr u. With lr = 1 and one worker the run equals that worker's own training.

    FedAvg (McMahan et al. 2017, algorithm 1).
    """
    number("outer lr", lr, above=0)

    def move(parameters: Tensor, update: Update, state: State) -> State:
        parameters.add_(update.vector, alpha=-lr * update.scale)
        return state

    return Outer(spec.call("sgd", lr=lr), lambda d: {}, move)


def nesterov(lr: float = 0.7, momentum: float = 0.9) -> Outer:
    """m <- momentum m + u; x <- x - lr (u + momentum m).

    DiLoCo (Douillard et al. 2023, arXiv 2311.08105, section 2).
    """
    number("outer lr", lr, above=0)
    number("outer momentum", momentum, least=0, below=1)

    def move(parameters: Tensor, update: Update, state: State) -> State:
        for x, u, m in strips(parameters, update.vector, state["momentum"]):
            m.mul_(momentum).add_(u, alpha=update.scale)
            x.add_(u, alpha=-lr * update.scale).add_(m, alpha=-lr * momentum)
        return state

    return Outer(spec.call("nesterov", lr=lr, momentum=momentum), lambda d: {"momentum": zeros(d)}, move)


def delayed_nesterov(lr: float = 0.7, momentum: float = 0.9, buffer: int | None = None, c: float = 0.0) -> Outer:
    """With N = buffer, at every step D <- D + u, x <- x - lr (u / N + c momentum m); at each N-th step instead, after
    m <- momentum m + D / N, x <- x - lr (u / N + (1 - c N + c) momentum m) and D <- 0.

    So N stale arrivals together are one Nesterov step along their mean, and momentum never follows a single one.
    `buffer` None: the run's expected workers. c, 0 to 1 / N, spreads the momentum over the steps between.
    Asynchronous Local-SGD (Liu et al. 2024, arXiv 2401.09135, algorithm 3), which uses c = 0 and N = the workers.
    """
    number("outer lr", lr, above=0)
    number("outer momentum", momentum, least=0, below=1)
    if buffer is not None:
        whole("outer buffer", buffer, 1)
    number("outer c", c, least=0, most=1 / (buffer or 1))
    text = spec.call("delayed_nesterov", lr=lr, momentum=momentum, buffer=buffer, c=c)

    def of(n: int) -> Outer:
        small = min(c, 1 / n)

        def move(parameters: Tensor, update: Update, state: State) -> State:
            whole = int(state["steps"].add_(1)) % n == 0
            push = (1.0 - small * n + small if whole else small) * momentum
            for x, u, m, waiting in strips(parameters, update.vector, state["momentum"], state["sum"]):
                waiting.add_(u, alpha=update.scale)
                if whole:
                    m.mul_(momentum).add_(waiting, alpha=1 / n)
                    waiting.zero_()
                x.add_(u, alpha=-lr * update.scale / n)
                if push:
                    x.add_(m, alpha=-lr * push)
            return state

        return Outer(text, lambda d: {"momentum": zeros(d), "sum": zeros(d), "steps": counter()}, move, bind=bind)

    def bind(sizes: Sequence[int], workers: int) -> Outer:
        return of(buffer or workers)

    return of(buffer or 1)
