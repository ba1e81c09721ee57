"""Every attack of lightning_async.attacks with the strength that proofs and experiments use: one list for all of them.

`fast` is not in it: who runs these lets all hostile workers submit more often than any honest one.
"""

from __future__ import annotations

DEVASTATING = ("sign_flip(k=10.0)", "alie(z=10.0)")  # those under which the plain mean is shown to fail


def attackers(classes: int) -> tuple[str, ...]:
    """Specs for a task with this many classes (of a language model: tokens), the devastating ones first."""
    return (
        *DEVASTATING,
        "alie()",
        "alie(z=1.5)",
        "ipm(epsilon=0.5)",
        "ipm(epsilon=10.0)",
        "mimic(target=0)",
        "scale(k=100.0)",
        "gaussian_noise(sigma=20.0)",
        "random(k=10.0)",
        "zero()",
        f"label_flip(classes={classes})",
        "stale_replay(delay=20)",
        "slow_drip(factor=3.0, share=0.95)",
    )
