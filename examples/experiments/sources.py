"""Who has which blocks of the text: shares at random, or by where the text comes from.

A source is a package or a module directly below the text's folder (`asyncio`, `ast.py`): its blocks are dealt out by a
Dirichlet draw of their own, so that a worker has much of some sources and none of others.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from examples.gpt2.corpus import END, prepare, read
from examples.gpt2.data import TextData


def sources(data: TextData) -> NDArray[np.int64]:
    """The source of every training block, as a number `[blocks]`: of the file in which the block begins.

    Raises ValueError where the files are not those that were prepared.
    """
    assert data.train is not None, "setup() comes first"
    corpus = prepare(data.text, data.cache, data.vocabulary, data.pattern, data.held_out)
    names = [d.name.split("/")[0] for d in read(data.text, data.pattern) if not d.held_out(data.held_out)]
    ends = np.flatnonzero(data.train.tokens == corpus.tokenizer.token_to_id(END))
    if len(ends) != len(names):
        raise ValueError(f"{len(ends)} ends of files in the tokens of {len(names)} files; no file may contain {END!r}")
    begins = np.arange(len(data.train)) * data.train.block
    _, numbers = np.unique(names, return_inverse=True)
    return numbers[np.searchsorted(ends, begins)]


def shares(data: TextData, workers: int, concentration: float | None, seed: int) -> list[NDArray[np.int64]]:
    """The blocks of each worker: at random, or every source's by a Dirichlet draw of this concentration.

    Nobody gets less than a batch: who would is given blocks at random.
    """
    assert data.train is not None, "setup() comes first"
    rng = np.random.default_rng(seed)
    owners = rng.integers(0, workers, len(data.train))
    if concentration is not None:
        source = sources(data)
        for number in np.unique(source):
            mine = np.flatnonzero(source == number)
            owners[mine] = rng.choice(workers, len(mine), p=rng.dirichlet([concentration] * workers))
    least = rng.permutation(len(owners))[: workers * data.batch_size]
    owners[least] = np.arange(len(least)) % workers
    return [np.flatnonzero(owners == worker) for worker in range(workers)]
