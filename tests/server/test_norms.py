"""What is usual among norms: the same as a plain re-computation, however many norms came."""

from __future__ import annotations

import random
import statistics

from lightning_async.server.norms import NORMS_KEPT, NORMS_NEEDED, Norms


def test_usual_is_the_median_of_the_workers_medians():
    rng, norms, plain = random.Random(0), Norms(), {}
    for _ in range(500):
        worker, norm = f"w{rng.randrange(9)}", rng.choice([rng.random(), 1.0, 1e30, 0.0])
        norms.note(worker, norm)
        plain.setdefault(worker, []).append(norm)
        medians = [statistics.median(own[-NORMS_KEPT:]) for own in plain.values()]
        assert norms.smallest(worker) == min(plain[worker][-NORMS_KEPT:])
        if sum(min(len(own), NORMS_KEPT) for own in plain.values()) < NORMS_NEEDED:
            assert norms.usual is None
        else:
            assert norms.usual == statistics.median(medians)


def test_a_restored_one_goes_on_as_it_would_have():
    rng, norms = random.Random(1), Norms()
    for _ in range(100):
        norms.note(f"w{rng.randrange(5)}", rng.random())
    restored = Norms.restored(norms.dump())
    for _ in range(100):
        worker, norm = f"w{rng.randrange(6)}", rng.random()
        norms.note(worker, norm)
        restored.note(worker, norm)
        assert restored.usual == norms.usual


def test_nothing_is_usual_of_nobody():
    assert Norms().usual is None
    assert Norms().smallest("w") == 0.0
