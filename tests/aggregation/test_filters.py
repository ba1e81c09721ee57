"""Zeno++ and Kardam by their definitions, and the sketches that Kardam measures with."""

from __future__ import annotations

import math

import pytest
import torch

from lightning_async.aggregation import aggregator, kardam, rule, zeno
from lightning_async.aggregation.filters import MODELS_KEPT, Case, dampening
from lightning_async.aggregation.sketch import WIDTH, sketch
from lightning_async.errors import ConfigError

NAMES = "abcdefg"


def judged(made, update, trusted):
    state = made.init(0)
    return made.judge(Case("a", update, 0, 0, ("a",), trusted), state)[0]


def test_zeno_takes_what_points_the_trusted_way_and_gives_it_the_trusted_length():
    trusted = torch.randn(100, generator=torch.Generator().manual_seed(0))
    update = 1e6 * (trusted + 0.3 * torch.randn(100, generator=torch.Generator().manual_seed(1)))
    verdict = judged(zeno(rho=0.1), update, trusted)
    assert verdict.passed
    assert (update * verdict.factor).norm().item() == pytest.approx(trusted.norm().item(), rel=1e-5)
    for bad in (-trusted, torch.zeros(100)):
        assert not judged(zeno(rho=0.1), bad, trusted).passed
    assert not judged(zeno(rho=0.1), trusted, torch.zeros(100)).passed


def test_zeno_threshold_is_the_formula():
    trusted = torch.tensor([2.0, 0.0])
    for angle in torch.linspace(0, math.pi, 37).tolist():
        update = 5 * torch.tensor([math.cos(angle), math.sin(angle)])
        score = 4 * math.cos(angle) - 0.5 * 4
        if abs(score + 0.4) > 1e-3:
            assert judged(zeno(rho=0.5, epsilon=0.4), update, trusted).passed == (score >= -0.4)


class Bowl:
    """Workers with gradients c_w * x of a moving model x [300]: worker w's slope is c_w."""

    def __init__(self, f: int, slopes: dict[str, float]) -> None:
        self.filter, self.slopes, self.version = kardam(f=f), slopes, 0
        self.x = torch.randn(300, generator=torch.Generator().manual_seed(0))
        self.state = self.filter.watch(0, self.x, tuple(slopes), self.filter.init(7))

    def move(self) -> None:
        self.version += 1
        self.x = self.x + 0.1 * torch.randn(300, generator=torch.Generator().manual_seed(self.version))
        self.state = self.filter.watch(self.version, self.x, tuple(self.slopes), self.state)

    def send(self, name: str, base: int | None = None, update: torch.Tensor | None = None):
        """The verdict on this worker's update."""
        made = self.slopes[name] * self.x if update is None else update
        case = Case(name, made, self.version if base is None else base, self.version, tuple(self.slopes))
        self.state = self.filter.note(case, self.state)
        verdict, self.state = self.filter.judge(case, self.state)
        return verdict


def seen_twice(f: int, slopes: dict[str, float]) -> Bowl:
    bowl = Bowl(f, slopes)
    for _ in range(2):
        for name in slopes:
            bowl.send(name)
        bowl.move()
    return bowl


def test_kardam_measures_each_workers_slope():
    slopes = dict(zip(NAMES, (1.0, 1.1, 0.9, 1.2, 0.8, 1.0, 50.0), strict=True))
    bowl = seen_twice(1, slopes)
    for name, slope in slopes.items():
        assert float(bowl.state[f"slope/{name}"]) == pytest.approx(slope, rel=0.05)


def test_kardam_drops_the_f_steepest_and_takes_each_worker_once_in_2f_plus_1():
    bowl = seen_twice(1, dict(zip(NAMES, (1.0, 1.1, 0.9, 1.2, 0.8, 1.0, 50.0), strict=True)))
    passed = []
    for _ in range(5):
        for name in "gabgcdg":
            verdict = bowl.send(name)
            if verdict.passed:
                passed.append(name)
                bowl.move()
            elif name == "g":
                assert "among the 1 steepest" in verdict.why
                assert verdict.distance_z > 3
    assert "g" not in passed
    assert len(passed) >= 15
    assert all(len(set(passed[i : i + 3])) == 3 for i in range(len(passed) - 2)), passed
    assert "one of the last 2 accepted" in [bowl.send(passed[-1]).why][0]


def test_kardam_is_ready_once_all_but_f_have_a_slope_and_a_model_that_stands_gives_none():
    bowl = Bowl(1, dict.fromkeys("abcd", 1.0))
    assert not bowl.filter.ready("abcd", bowl.state)
    for _ in range(3):
        for name in "abcd":
            assert bowl.send(name).why == "not seen at two models yet"
    assert not bowl.filter.ready("abcd", bowl.state)
    bowl.move()
    for name in "abc":
        bowl.send(name)
    assert bowl.filter.ready("abcd", bowl.state)
    assert not bowl.filter.ready("abcdef", bowl.state)


def test_kardam_measures_against_the_last_other_model_however_often_a_worker_sends():
    bowl = seen_twice(1, dict.fromkeys("abcd", 1.0))
    for _ in range(5):
        bowl.send("a")
    assert float(bowl.state["slope/a"]) == pytest.approx(1.0, rel=0.05)


def test_kardam_does_not_judge_by_an_old_slope_what_it_cannot_measure():
    bowl = seen_twice(1, dict.fromkeys("abcd", 1.0))
    assert bowl.send("a", base=-5).why == "not seen at two models yet"


def test_kardam_dampens_what_is_stale():
    bowl = seen_twice(1, dict.fromkeys("abcd", 1.0))
    old = bowl.x.clone()
    for _ in range(3):
        bowl.move()
    verdict = bowl.send("a", base=2, update=old)
    assert verdict.factor == pytest.approx(dampening(3, 0.1)) == pytest.approx(math.exp(-0.3))


def test_what_kardam_remembers_is_bounded():
    bowl = Bowl(1, dict.fromkeys("abcd", 1.0))
    for _ in range(MODELS_KEPT + 20):
        bowl.send("abcd"[bowl.version % 4])
        bowl.move()
    assert sum(key.startswith("model/") for key in bowl.state) == MODELS_KEPT
    assert all(value.numel() <= WIDTH for value in bowl.state.values())
    bowl.state = bowl.filter.watch(bowl.version, bowl.x, ("a",), bowl.state)
    assert {key.split("/")[-1] for key in bowl.state if "/" in key and not key.startswith("model")} == {"a"}


@pytest.mark.parametrize("size", [1, WIDTH - 1, WIDTH, WIDTH + 1, 50_000])
@pytest.mark.parametrize("kind", ["noise", "constant", "spike", "wave"])
def test_a_sketch_keeps_distances(size, kind):
    base = torch.randn(size, generator=torch.Generator().manual_seed(0)) * 100
    apart = {
        "noise": torch.randn(size, generator=torch.Generator().manual_seed(1)),
        "constant": torch.full((size,), 0.3),
        "spike": torch.zeros(size).index_fill_(0, torch.tensor([size // 2]), 5.0),
        "wave": torch.sin(torch.arange(size) / 7.0) + 0.01,
    }[kind]
    found = (sketch(base + apart, 3) - sketch(base, 3)).norm().item()
    assert found == pytest.approx(apart.norm().item(), rel=0.12)
    assert not torch.equal(sketch(base, 3), sketch(base, 4)) or size == 1


@pytest.mark.parametrize(
    "spec",
    ["kardam", "kardam(f=-1)", "kardam(f=0.5)", "kardam(f=1, decay=0.0)", "zeno", "zeno(rho=1.5)", "zeno(rho='a')",
     "zeno(rho=0.1, epsilon=-1.0)", "zeno(rho=0.1, every=0)", "pipeline(nnm(f=1), kardam(f=1))"],
)  # fmt: skip
def test_what_cannot_work_is_refused_at_once(spec):
    with pytest.raises(ConfigError):
        rule(spec)


def test_a_filter_is_no_rule_over_rows():
    assert rule("kardam(f=1)") == kardam(f=1)
    with pytest.raises(ConfigError, match="one by one"):
        aggregator("kardam(f=1)")
