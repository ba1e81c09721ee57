"""Every attack over the table, then each by its formula."""

from __future__ import annotations

import pytest
import torch

from lightning_async.attacks import ATTACKS, MARK, FlippedLabels, Seen, alie_z, attack, permit
from lightning_async.errors import ConfigError

CASES = {
    "sign_flip": "sign_flip(k=10.0)",
    "scale": "scale(k=100.0)",
    "gaussian_noise": "gaussian_noise(sigma=2.0)",
    "zero": "zero()",
    "random": "random(k=3.0)",
    "alie": "alie(z=1.5)",
    "ipm": "ipm(epsilon=0.5)",
    "mimic": "mimic(target=2)",
    "label_flip": "label_flip(classes=10)",
    "stale_replay": "stale_replay(delay=3)",
    "slow_drip": "slow_drip(factor=3.0, share=0.95)",
    "fast": "fast(sign_flip(k=10.0), speed=10.0)",
}
D = 4000


def scene(seed=0):
    generator = torch.Generator().manual_seed(seed)
    honest = [torch.randn(D, generator=generator) + 0.3 for _ in range(9)]
    return torch.randn(D, generator=generator), Seen(honest, n=11, f=2, seed=seed)


def send(spec, seed=0):
    own, seen = scene(seed)
    return attack(spec).submit(own, seen, {})[0], own, torch.stack(list(seen.honest))


def test_every_attack_of_the_table_has_a_case():
    assert set(CASES) == set(ATTACKS)


@pytest.mark.parametrize("spec", CASES.values())
def test_every_attack_is_a_pure_function_with_a_spec(spec):
    made = attack(spec)
    assert made.spec == spec
    assert attack(made.spec) == made
    own, seen = scene()
    kept, others = own.clone(), [row.clone() for row in seen.honest]
    first, state = made.submit(own, seen, {})
    assert torch.equal(first, made.submit(own, seen, {})[0])
    assert first.shape == own.shape
    assert first.dtype == torch.float32
    assert torch.equal(own, kept)
    assert all(torch.equal(a, b) for a, b in zip(seen.honest, others, strict=True))
    alone, _ = made.submit(own, Seen(), state)
    assert alone.isfinite().all()


def test_alone():
    sent, own, _ = send("sign_flip(k=10.0)")
    assert torch.equal(sent, -10 * own)
    sent, own, _ = send("scale(k=100.0)")
    assert torch.equal(sent, 100 * own)
    sent, own, _ = send("gaussian_noise(sigma=2.0)")
    assert (sent - own).std().item() == pytest.approx(2 * own.square().mean().sqrt().item(), rel=0.05)
    sent, own, _ = send("random(k=3.0)")
    assert sent.norm().item() == pytest.approx(3 * own.norm().item(), rel=1e-4)
    assert abs(torch.cosine_similarity(sent, own, dim=0).item()) < 0.1
    assert not torch.equal(send("random", seed=1)[0], send("random", seed=2)[0])
    assert not send("zero")[0].any()


def test_colluding():
    sent, _, honest = send("alie(z=1.5)")
    torch.testing.assert_close(sent, honest.mean(0) - 1.5 * honest.std(0, correction=0))
    sent, _, honest = send("ipm(epsilon=0.5)")
    torch.testing.assert_close(sent, -0.5 * honest.mean(0))
    sent, _, honest = send("mimic(target=2)")
    assert torch.equal(sent, honest[2])


def test_alie_takes_z_from_n_and_f():
    """Baruch et al. 2019, section 3: n = 50 and f = 24 need s = 2 supporters, of 26: z with Phi(z) = 24 / 26."""
    assert alie_z(50, 24) == pytest.approx(1.426, abs=1e-3)
    sent, _, honest = send("alie")
    torch.testing.assert_close(sent, honest.mean(0) - alie_z(11, 2) * honest.std(0, correction=0))


def test_stale_replay_repeats_then_renews():
    made, state, sent = attack("stale_replay(delay=2)"), {}, []
    for step in range(7):
        vector, state = made.submit(torch.full((3,), float(step)), Seen(), state)
        sent.append(vector[0].item())
    assert sent == [0, 0, 0, 3, 3, 3, 6]


def test_slow_drip_stays_below_the_norm_bound_and_never_turns():
    made, state, sent = attack("slow_drip(factor=3.0, share=0.95)"), {}, []
    for seed in range(4):
        own, seen = scene(seed)
        vector, state = made.submit(own, seen, state)
        median = torch.stack(list(seen.honest)).norm(dim=1).median()
        assert 0.9 * 3 * median < vector.norm() < 3 * median
        sent.append(vector / vector.norm())
    assert all(torch.dot(sent[0], vector) > 0.9999 for vector in sent)


def test_fast_multiplies_the_speed_of_any_attack():
    assert attack("fast(zero, speed=10.0)").speed == 10.0
    assert attack("fast(fast(zero, speed=2.0), speed=3.0)").speed == 6.0
    assert attack("fast(label_flip(classes=10))").data is not None


def test_label_flip_poisons_the_data_and_sends_what_it_computed():
    made = attack("label_flip(classes=10)")
    poisoned = made.data([(torch.ones(2), y) for y in range(10)])
    assert isinstance(poisoned, FlippedLabels)
    assert [y for _, y in poisoned] == list(range(9, -1, -1))
    own = torch.randn(5)
    assert torch.equal(made.submit(own, Seen(), {})[0], own)


@pytest.mark.parametrize("environment", [{}, {MARK: ""}, {MARK: "0"}, {MARK: "true"}])
def test_attacks_are_refused_outside_an_experiment(environment):
    with pytest.raises(ConfigError, match=f"set {MARK}=1"):
        permit(environment)
    permit({MARK: "1"})


@pytest.mark.parametrize(
    "spec",
    [
        "scale",
        "sign_flip(k='a')",
        "alie(z=True)",
        "mimic(target=-1)",
        "stale_replay(delay=0)",
        "label_flip(classes=1)",
        "fast(3)",
        "fast(zero, speed=0)",
        "fast",
        "nothing",
        "gaussian_noise(sigma=1e999)",
    ],
)
def test_nonsense_is_refused(spec):
    with pytest.raises(ConfigError):
        attack(spec)
