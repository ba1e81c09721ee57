"""Synchronous training of a small network on digits (scikit-learn) by n workers, f of them under an attack."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from lightning_async.aggregation import aggregator
from lightning_async.attacks import Seen, attack

Floats = NDArray[np.float32]
N, F, HIDDEN, CLASSES = 11, 2, 32, 10
ROUNDS, BATCH, MOMENTUM, RATE = 800, 64, 0.9, 1.0
ONE_HOT = np.eye(CLASSES, dtype=np.float32)


@dataclass(frozen=True)
class Share:
    """One worker's images [k, 64] and labels [k]."""

    images: torch.Tensor
    labels: torch.Tensor


@cache
def data() -> tuple[Share, Share]:
    """Training and test set; the test images are held out from every worker."""
    images, labels = load_digits(return_X_y=True)
    parts = train_test_split((images / 16.0).astype(np.float32), labels, test_size=0.2, random_state=0, stratify=labels)
    train_x, test_x, train_y, test_y = (torch.from_numpy(part) for part in parts)
    return Share(train_x, train_y), Share(test_x, test_y)


def split(workers: int, concentration: float | None, seed: int = 0) -> list[Share]:
    """The training set in `workers` shares: at random, or every class by a Dirichlet draw of this concentration."""
    rng, train = np.random.default_rng(seed), data()[0]
    owners = rng.integers(0, workers, len(train.labels))
    if concentration is not None:
        for label in range(CLASSES):
            mine = np.flatnonzero(train.labels.numpy() == label)
            owners[mine] = rng.choice(workers, len(mine), p=rng.dirichlet([concentration] * workers))
    owners[rng.permutation(len(owners))[:workers]] = np.arange(workers)
    return [Share(train.images[owners == w], train.labels[owners == w]) for w in range(workers)]


def start() -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    first = torch.randn(HIDDEN, 64, generator=generator) / 8
    last = torch.randn(CLASSES, HIDDEN, generator=generator) / HIDDEN**0.5
    return torch.cat([first.flatten(), torch.zeros(HIDDEN), last.flatten(), torch.zeros(CLASSES)])


def layers(flat: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Views of the first layer's matrix and bias, and of the last layer's."""
    a, b, c, d = flat.split([HIDDEN * 64, HIDDEN, CLASSES * HIDDEN, CLASSES])
    return a.view(HIDDEN, 64), b, c.view(CLASSES, HIDDEN), d


def logits(flat: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
    a, b, c, d = layers(flat)
    return torch.relu(images @ a.T + b) @ c.T + d


@np.errstate(over="ignore", invalid="ignore")  # of a run that has diverged they are NaN, as torch's are
def gradients(flat: Floats, images: Floats, labels: NDArray[np.int64]) -> Floats:
    """[w, d]: the cross-entropy gradient of every worker's batch, images [w, b, 64] and labels [w, b], at once.

    In numpy: of networks this small torch's calls cost three times what is computed.
    """
    w, size, _ = images.shape
    a, b, c, d = (part.numpy() for part in layers(torch.from_numpy(flat)))
    hidden = np.maximum(images @ a.T + b, 0)
    scores = hidden @ c.T + d
    error = np.exp(scores - scores.max(-1, keepdims=True))
    error /= error.sum(-1, keepdims=True)
    error -= ONE_HOT[labels]
    error /= size
    back = (error @ c) * (hidden > 0)
    parts = [np.swapaxes(back, 1, 2) @ images, back.sum(1), np.swapaxes(error, 1, 2) @ hidden, error.sum(1)]
    return np.concatenate([part.reshape(w, -1) for part in parts], axis=1)


def batches(shares: list[Share], rng: np.random.Generator) -> Iterator[tuple[Floats, NDArray[np.int64]]]:
    """For ever: images [w, b, 64] and labels [w, b], drawn by every worker from its own share."""
    images = np.concatenate([share.images.numpy() for share in shares])
    labels = np.concatenate([share.labels.numpy() for share in shares])
    sizes = np.array([[len(share.labels)] for share in shares])
    begins = np.cumsum(sizes, axis=0) - sizes
    while True:
        rows = begins + rng.integers(0, sizes, (len(shares), BATCH))
        yield images[rows], labels[rows]


def accuracy(flat: torch.Tensor) -> float:
    """Share of the test images that are classified rightly."""
    test = data()[1]
    return (logits(flat, test.images).argmax(1) == test.labels).float().mean().item()


def poisoned(share: Share, how: str | None) -> Share:
    change = attack(how).data if how else None
    if change is None:
        return share
    pairs = list(change(list(zip(share.images, share.labels, strict=True))))
    return Share(torch.stack([x for x, _ in pairs]), torch.stack([y for _, y in pairs]))


def train(
    rule: str, how: str | None, concentration: float | None, seed: int = 0, *, rounds: int = ROUNDS, falls: bool = True
) -> float:
    """Test accuracy after `rounds` steps; without an attack only the n - f honest workers take part.

    With `falls` the rate falls to zero, so that what is measured is not where the last steps happened to stop. `seed`
    is of the shares and of the batches.
    """
    honest = split(N - F, concentration, seed)
    bad = [poisoned(data()[0], how)] * F if how else []
    shares = honest + bad
    flat, made, act = start(), aggregator(rule), attack(how) if how else None
    state, memories = made.init(flat.numel()), [{} for _ in bad]
    momenta, drawn = torch.zeros(len(shares), flat.numel()), batches(shares, np.random.default_rng(100 + seed))
    for step in range(rounds):
        momenta = MOMENTUM * momenta + (1 - MOMENTUM) * torch.from_numpy(gradients(flat.numpy(), *next(drawn)))
        rows = list(momenta[: N - F])
        for b in range(len(bad)):
            seen = Seen(list(momenta[: N - F]), N, F, seed=1000 * step + b)
            sent, memories[b] = act.submit(momenta[N - F + b], seen, memories[b])
            rows.append(sent)
        outcome = made.apply(rows, [1.0] * len(rows), state)
        state, flat = outcome.state, flat - RATE * (1 - step / rounds if falls else 1) * outcome.vector
    return accuracy(flat)
