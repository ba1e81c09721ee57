"""The GPT-2 example: the split by file, the cache, the model, the throttle, the curves."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from children import Children
from eventually import ENOUGH_S

from examples.gpt2 import record, throttle
from examples.gpt2.corpus import Document, prepare, read
from examples.gpt2.data import TextData
from examples.gpt2.module import GPT2, SIZES

ROOT = Path(__file__).parents[2]
WORDS = 300  # tokens of the small vocabulary of these tests


@pytest.fixture
def library(tmp_path: Path) -> Path:
    """A folder of 40 small files, one of which is not UTF-8, and one that belongs to an installed package."""
    root = tmp_path / "library"
    (root / "part").mkdir(parents=True)
    (root / "site-packages").mkdir()
    for i in range(39):
        (root / "part" / f"m{i}.py").write_text(f"def function_{i}(argument):\n    return argument + {i}\n" * 20)
    (root / "odd.py").write_bytes(b"name = '\xff\xfe'\n" * 30)
    (root / "site-packages" / "foreign.py").write_text("foreign = 1\n")
    return root


def data(library: Path, cache: Path) -> TextData:
    made = TextData(WORDS, block=16, batch_size=4, text=str(library), cache=str(cache), held_out=0.2)
    made.setup()
    return made


def test_installed_packages_are_not_read(library: Path) -> None:
    names = [document.name for document in read(library, "*.py")]
    assert len(names) == 40
    assert names == sorted(names)
    assert not any("foreign" in name for name in names)


def test_split_is_by_file_and_does_not_depend_on_other_files(library: Path) -> None:
    before = {d.name: d.held_out(0.2) for d in read(library, "*.py")}
    assert 0 < sum(before.values()) < len(before)
    (library / "another.py").write_text("x = 1\n")
    after = {d.name: d.held_out(0.2) for d in read(library, "*.py")}
    assert before == {name: after[name] for name in before}


def test_held_out_fraction_is_about_what_was_asked() -> None:
    held = sum(Document(f"a/{i}.py", "").held_out(0.02) for i in range(10_000))
    assert 150 < held < 250


def test_no_validation_text_is_trained_on(library: Path, tmp_path: Path) -> None:
    corpus = prepare(library, tmp_path / "cache", WORDS, held_out=0.2)
    documents = read(library, "*.py")
    for split, held in (("train", False), ("val", True)):
        text = corpus.tokenizer.decode(corpus.tokens(split).tolist(), skip_special_tokens=False)
        expected = [d.text for d in documents if d.held_out(0.2) is held]
        assert text == "".join(f"{t}<|endoftext|>" for t in expected)


def test_second_preparation_reads_the_cache(library: Path, tmp_path: Path) -> None:
    first = prepare(library, tmp_path / "cache", WORDS, held_out=0.2)
    written = (first.folder / "train.bin").stat().st_mtime_ns
    assert prepare(library, tmp_path / "cache", WORDS, held_out=0.2) == first
    assert (first.folder / "train.bin").stat().st_mtime_ns == written


def test_changed_text_is_prepared_anew(library: Path, tmp_path: Path) -> None:
    first = prepare(library, tmp_path / "cache", WORDS, held_out=0.2)
    (library / "odd.py").write_text("name = 2\n")
    assert prepare(library, tmp_path / "cache", WORDS, held_out=0.2) != first


def test_failed_preparation_leaves_nothing_behind(
    library: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("examples.gpt2.corpus._encode", fail)
    with pytest.raises(OSError, match="disk full"):
        prepare(library, tmp_path / "cache", WORDS, held_out=0.2)
    assert [p for p in (tmp_path / "cache").iterdir() if p.is_dir()] == []


def test_three_processes_at_once_prepare_once(library: Path, tmp_path: Path, children: Children) -> None:
    code = (
        "import sys; from pathlib import Path; from examples.gpt2.corpus import prepare; "
        f"c = prepare(Path(sys.argv[1]), Path(sys.argv[2]), {WORDS}, held_out=0.2); print(len(c.tokens('train')))"
    )
    command = [sys.executable, "-c", code, str(library), str(tmp_path / "cache")]
    started = [children.start(command, cwd=ROOT) for _ in range(3)]
    outputs = [process.communicate(timeout=2 * ENOUGH_S)[0] for process in started]
    assert [process.returncode for process in started] == [0, 0, 0]
    assert sum("preparing" in out for out in outputs) == 1
    assert len({out.splitlines()[-1] for out in outputs}) == 1


@pytest.mark.parametrize(
    ("change", "message"), [({"vocabulary": 100}, "vocabulary"), ({"pattern": "*.txt"}, "matches")]
)
def test_impossible_settings_are_refused(
    library: Path, tmp_path: Path, change: dict[str, object], message: str
) -> None:
    settings: dict[str, object] = {"vocabulary": WORDS, "pattern": "*.py", **change}
    with pytest.raises(ValueError, match=message):
        prepare(library, tmp_path / "cache", **settings)  # type: ignore[arg-type]


def test_blocks_follow_each_other_and_overlap_by_one_token(library: Path, tmp_path: Path) -> None:
    train = data(library, tmp_path / "cache").train
    assert train is not None
    assert train[0].shape == (17,)
    assert train[0].dtype == torch.int64
    assert train[0][-1] == train[1][0]
    with pytest.raises(IndexError):
        train[len(train)]


def test_blocks_are_memory_mapped(library: Path, tmp_path: Path) -> None:
    import numpy as np

    train = data(library, tmp_path / "cache").train
    assert train is not None
    assert isinstance(train.tokens, np.memmap)


@pytest.mark.parametrize(("size", "parameters"), [("nano", 1_071_872), ("small", 124_439_808), ("medium", 354_823_168)])
def test_sizes_have_their_parameters(size: str, parameters: int) -> None:
    with torch.device("meta"):
        module = GPT2(size)
    assert sum(p.numel() for p in module.parameters()) == parameters


def test_every_trained_tensor_is_in_exactly_one_group() -> None:
    module = GPT2("nano")
    groups = module.configure_optimizers().param_groups
    grouped = [id(p) for group in groups for p in group["params"]]
    assert sorted(grouped) == sorted(id(p) for p in module.parameters())
    assert [group["weight_decay"] for group in groups] == [0.1, 0.0]


def test_unknown_size_names_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"unknown size 'large'.*nano"):
        GPT2("large")


def test_untrained_loss_is_that_of_guessing() -> None:
    torch.manual_seed(0)
    block = torch.randint(SIZES["nano"].tokens, (4, 33))
    assert GPT2("nano").loss(block).item() == pytest.approx(math.log(SIZES["nano"].tokens), rel=0.02)


def test_loss_does_not_see_the_future() -> None:
    torch.manual_seed(0)
    module = GPT2("nano").eval()
    tokens = torch.randint(2048, (1, 20))
    changed = tokens.clone()
    changed[0, 10:] = 7
    torch.testing.assert_close(module(tokens)[:, :10], module(changed)[:, :10])


def test_a_few_steps_learn(library: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    loaded = data(library, tmp_path / "cache")
    module = GPT2("nano")
    optimizer = module.configure_optimizers()
    losses = []
    for batch, _ in zip(loaded.train_dataloader(), range(12), strict=False):
        loss = module.loss(batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 1.0


def test_warmup_rises_to_the_full_rate() -> None:
    scheduler = GPT2("nano", lr=1.0, warmup_steps=4).configure_optimizers()["lr_scheduler"]["scheduler"]
    rates = []
    for _ in range(6):
        rates.append(scheduler.get_last_lr()[0])
        scheduler.optimizer.step()
        scheduler.step()
    assert rates == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]


class Clock:
    """Time that passes only in sleeps and by hand."""

    def __init__(self) -> None:
        self.now = 100.0
        self.slept: list[float] = []

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds


class Rank:
    """What the throttle asks of a Trainer."""

    def __init__(self, local_rank: int) -> None:
        self.local_rank = local_rank


def test_throttle_fills_each_step_up_and_does_not_catch_up(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr(throttle, "time", clock)
    callback = throttle.Throttle([2.0, 0.5], unit_s=1.0)
    callback.on_train_start(Rank(1), None)  # type: ignore[arg-type]
    for worked in (0.5, 3.0, 0.25):
        clock.now += worked
        callback.on_train_batch_end(Rank(1), None, None, None, 0)  # type: ignore[arg-type]
    assert clock.slept == [1.5, 1.75]
    assert callback.period_s(0) == 0.5


def test_throttle_refuses_a_worker_without_a_speed() -> None:
    with pytest.raises(ValueError, match="local rank 2"):
        throttle.Throttle([1.0, 2.0], unit_s=1.0).period_s(2)


def test_unit_is_measured_once_and_left_for_child_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(throttle.UNIT_VARIABLE, "so that it is restored")
    monkeypatch.delenv(throttle.UNIT_VARIABLE)
    module, batch = GPT2("nano"), torch.zeros(1, 9, dtype=torch.int64)
    first = throttle.unit_for(module, batch, [1.0, 2.0], steps=1)
    assert first > 0
    assert throttle.unit_for(module, batch, [1.0, 2.0], steps=1) == first


def test_curves_are_read_back_and_drawn(tmp_path: Path) -> None:
    points = [record.Point(10.0 + i, i, 100 * i, 5.0 - i, math.nan) for i in range(3)]
    lines = [",".join(record.Point._fields)] + [",".join(map(str, point)) for point in points]
    (tmp_path / "worker-0.csv").write_text("\n".join(lines) + "\n")
    curves = record.read(tmp_path)
    assert [point[:4] for point in curves["worker-0"]] == [point[:4] for point in points]
    code = "import sys; from pathlib import Path; from examples.gpt2.record import plot, read; p = Path(sys.argv[1]); "
    code += "plot(read(p), p / 'loss.png', 'test')"  # in its own process, because matplotlib keeps its fonts open
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True, cwd=ROOT, timeout=4 * ENOUGH_S)
    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")


def test_smoothing_keeps_a_constant() -> None:
    assert record.smooth([3.0, 3.0, 3.0]) == pytest.approx([3.0, 3.0, 3.0])
