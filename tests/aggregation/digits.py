"""Synchronous training of a small network on digits (scikit-learn) by n workers, f of them under an attack."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from lightning_async.aggregation import aggregator
from lightning_async.attacks import Seen, attack

N, F, HIDDEN, CLASSES = 11, 2, 32, 10
ROUNDS, BATCH, MOMENTUM, RATE = 800, 64, 0.9, 1.0


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


def logits(flat: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
    a, b, c, d = flat.split([HIDDEN * 64, HIDDEN, CLASSES * HIDDEN, CLASSES])
    hidden = torch.relu(images @ a.view(HIDDEN, 64).T + b)
    return hidden @ c.view(CLASSES, HIDDEN).T + d


def gradients(flat: torch.Tensor, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """[w, d]: the cross-entropy gradient of every worker's batch, images [w, b, 64] and labels [w, b], at once."""
    a, b, c, d = flat.split([HIDDEN * 64, HIDDEN, CLASSES * HIDDEN, CLASSES])
    a, c = a.view(HIDDEN, 64), c.view(CLASSES, HIDDEN)
    hidden = torch.relu(images @ a.T + b)
    error = torch.softmax(hidden @ c.T + d, -1) - torch.nn.functional.one_hot(labels, CLASSES)
    error /= images.shape[1]
    back = (error @ c) * (hidden > 0)
    parts = [back.mT @ images, back.sum(1), error.mT @ hidden, error.sum(1)]
    return torch.cat([part.flatten(1) for part in parts], dim=1)


def batch(shares: list[Share], rng: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    rows = [torch.from_numpy(rng.integers(0, len(share.labels), BATCH)) for share in shares]
    images = [share.images[mine] for share, mine in zip(shares, rows, strict=True)]
    return torch.stack(images), torch.stack([share.labels[mine] for share, mine in zip(shares, rows, strict=True)])


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
    flat, made = start(), aggregator(rule)
    state, memories = made.init(flat.numel()), [{} for _ in bad]
    momenta, rng = torch.zeros(len(shares), flat.numel()), np.random.default_rng(100 + seed)
    for step in range(rounds):
        momenta = MOMENTUM * momenta + (1 - MOMENTUM) * gradients(flat, *batch(shares, rng))
        rows = list(momenta[: N - F])
        for b in range(len(bad)):
            seen = Seen(list(momenta[: N - F]), N, F, seed=1000 * step + b)
            sent, memories[b] = attack(how).submit(momenta[N - F + b], seen, memories[b])
            rows.append(sent)
        outcome = made.apply(rows, [1.0] * len(rows), state)
        state, flat = outcome.state, flat - RATE * (1 - step / rounds if falls else 1) * outcome.vector
    return accuracy(flat)
