"""Every outer optimizer once more, naively: float64 lists, one number at a time, straight from its docstring."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

Vector = list[float]
Naive = Callable[[Vector, Vector, int, dict[str, Any]], Vector]  # x, u, age, memory -> x


def sgd(lr: float) -> Naive:
    return lambda x, u, age, memory: [a - lr * b for a, b in zip(x, u, strict=True)]


def nesterov(lr: float, momentum: float) -> Naive:
    def step(x: Vector, u: Vector, age: int, memory: dict[str, Any]) -> Vector:
        m = memory["m"] = [momentum * a + b for a, b in zip(memory.get("m", [0.0] * len(x)), u, strict=True)]
        return [a - lr * (b + momentum * c) for a, b, c in zip(x, u, m, strict=True)]

    return step


def delayed_nesterov(lr: float, momentum: float, n: int, c: float) -> Naive:
    def step(x: Vector, u: Vector, age: int, memory: dict[str, Any]) -> Vector:
        t = memory["t"] = memory.get("t", 0) + 1
        m = memory.get("m", [0.0] * len(x))
        total = [a + b for a, b in zip(memory.get("total", [0.0] * len(x)), u, strict=True)]
        share = c
        if t % n == 0:
            m = [momentum * a + b / n for a, b in zip(m, total, strict=True)]
            total, share = [0.0] * len(x), 1 - c * n + c
        memory["m"], memory["total"] = m, total
        return [a - lr * (b / n + share * momentum * d) for a, b, d in zip(x, u, m, strict=True)]

    return step


def look_ahead(
    lr: float, momentum: float, steps: int, correct: Callable[[Vector, Vector], Vector] | None = None
) -> Naive:
    """In terms of x itself, which `memory` keeps; what is returned is where workers start."""

    def step(y: Vector, u: Vector, age: int, memory: dict[str, Any]) -> Vector:
        x, m = memory.get("x", y), memory.get("m", [0.0] * len(y))
        u = u if correct is None else correct(u, m)
        m = [momentum * a + (1 - momentum) * b for a, b in zip(m, u, strict=True)]
        x = [a - lr * (b + momentum * c) for a, b, c in zip(x, u, m, strict=True)]
        memory["x"], memory["m"] = x, m
        ahead = sum(momentum**i for i in range(1, steps + 1))
        return [a - lr * ahead * b for a, b in zip(x, m, strict=True)]

    return step


def heloco(lr: float, momentum: float, sizes: Sequence[int], constants: dict[str, float]) -> Naive:
    def correct(u: Vector, m: Vector) -> Vector:
        out: Vector = []
        for size in sizes:
            begin = len(out)
            out += turned(u[begin : begin + size], m[begin : begin + size], **constants)
        return out

    return look_ahead(lr, momentum, 1, correct)


def turned(u: Vector, m: Vector, c_ok: float, k_s: float, k_d: float, kappa: float, beta_max: float) -> Vector:
    """One tensor's corrected update."""
    length, other = math.hypot(*u), math.hypot(*m)
    if not length or not other:
        return u
    c = sum(a * b for a, b in zip(u, m, strict=True)) / (length * other)
    conf = length / (length + kappa * other)
    if c >= c_ok:
        return u
    if c < 0:
        beta = min(k_s * -c * conf, beta_max)
        return [a - beta * c * length * b / other for a, b in zip(u, m, strict=True)]
    lam = min(k_d * (1 - c) * conf, 1.0)
    mixed = [(1 - lam) * a / length + lam * b / other for a, b in zip(u, m, strict=True)]
    return [length * a / math.hypot(*mixed) for a in mixed]


def adam(lr: float, beta1: float, beta2: float, eps: float) -> Naive:
    def step(x: Vector, u: Vector, age: int, memory: dict[str, Any]) -> Vector:
        t = memory["t"] = memory.get("t", 0) + 1
        zero = [0.0] * len(x)
        m = memory["m"] = [beta1 * a + (1 - beta1) * b for a, b in zip(memory.get("m", zero), u, strict=True)]
        v = memory["v"] = [beta2 * a + (1 - beta2) * b * b for a, b in zip(memory.get("v", zero), u, strict=True)]
        bias1, bias2 = 1 - beta1**t, 1 - beta2**t
        return [a - lr * (b / bias1) / (math.sqrt(c / bias2) + eps) for a, b, c in zip(x, m, v, strict=True)]

    return step


def delay_compensated(inner: Naive, lam: float, decay: float | None, keep: int) -> Naive:
    def step(x: Vector, u: Vector, age: int, memory: dict[str, Any]) -> Vector:
        past: list[Vector] = memory.setdefault("past", [])
        past.append(x)
        old = past[-1 - min(age, len(past) - 1, keep - 1)]
        rate = [lam] * len(x)
        if decay is not None:
            before = memory.get("square", [0.0] * len(x))
            square = memory["square"] = [decay * a + (1 - decay) * b * b for a, b in zip(before, u, strict=True)]
            rate = [lam / math.sqrt(a + 1e-7) for a in square]
        u = [b + r * b * b * (a - o) for a, b, r, o in zip(x, u, rate, old, strict=True)]
        return inner(x, u, age, memory)

    return step
