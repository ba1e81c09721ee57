"""One script, several workers: what each rank ends with, what is written, what the report says, what is left."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from eventually import ENOUGH_S, eventually
from ports import free
from processes import Program, address_of, results, script, serve

from lightning_async.cli.status import ask

pytestmark = pytest.mark.slow


class Ended:
    """A program that went well: its results by rank, its folder and its output. A gate opens once rank 1 steps."""

    def __init__(self, folder: Path, options: dict[str, Any]) -> None:
        self.folder = folder
        with Program(script("train", options), folder) as program:
            self.address = address_of(program)
            if "gate" in options:
                program.wait_for_step(1, 1)
                program.open_gate()
            self.code = program.wait()
            program.wait_until_gone()
            self.output = program.output
        self.ranks = results(folder)


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> Ended:
    options = {"devices": 3, "val": True, "loggers": True, "then": ["test", "validate"], "sleep_s": [0.0, 0.02, 0.005]}
    options |= {"strategy": {"local_steps": 4}, "trainer": {"max_steps": 96, "val_check_interval": 32}}
    return Ended(tmp_path_factory.mktemp("three"), options)


def test_every_rank_trains_to_the_end(three: Ended) -> None:
    assert three.code == 0, three.output
    assert [len(rank["losses"]) for rank in three.ranks] == [96, 96, 96]
    untrained = max(max(rank["losses"][:8]) for rank in three.ranks)  # one that begins late finds trained parameters
    assert all(sum(rank["losses"][-8:]) / 8 < 0.5 * untrained for rank in three.ranks)


def test_nothing_is_left(three: Ended) -> None:
    assert free(three.address), "the port is still open"


def test_no_two_ranks_train_on_the_same_sample(three: Ended) -> None:
    indices = [index for rank in three.ranks for index in rank["indices"]]
    assert len(indices) == 3 * 96 * 8
    assert len(set(indices)) == len(indices)


def test_all_begin_with_the_first_ranks_parameters_and_end_with_the_same(three: Ended) -> None:
    zero, one, two = three.ranks
    assert one["initial"] != zero["initial"], "the test's own premise"
    assert zero["after_fit"] == one["after_fit"] == two["after_fit"]
    assert zero["after_fit"] != zero["initial"]


def test_one_folder_for_each_logger(three: Ended) -> None:
    for logger in ("csv", "tensorboard"):
        folders = [path.name for path in (three.folder / "logs" / logger / "lightning_logs").iterdir()]
        assert folders == ["version_0"]
    assert len({rank["log_dir"] for rank in three.ranks}) == 1
    written = (three.folder / "logs/csv/lightning_logs/version_0/metrics.csv").read_text()
    assert "train_loss" in written.splitlines()[0]
    authors = {path.name.split(".")[-2] for path in (three.folder / "logs").rglob("events.out.tfevents.*")}
    assert authors == {str(three.ranks[0]["pid"])}, "another rank has written"


def test_one_best_checkpoint_that_every_rank_can_test(three: Ended) -> None:
    written = [path.relative_to(three.folder) for path in three.folder.rglob("*.ckpt")]
    assert len(written) == 1
    assert {rank["best"] for rank in three.ranks} == {str(written[0])} or {rank["best"] for rank in three.ranks} == {
        str(three.folder / written[0])
    }
    losses = [rank["test"][0]["test_loss"] for rank in three.ranks]
    assert losses[0] == losses[1] == losses[2]
    assert losses[0] < 1.0


def test_validation_after_the_fit_needs_no_server(three: Ended) -> None:
    assert len({rank["validate"][0]["val_loss"] for rank in three.ranks}) == 1


def test_the_report_is_whole_on_every_rank(three: Ended) -> None:
    for rank in three.ranks:
        report = rank["report"]
        workers = report["workers"].values()
        assert sorted(worker["rank"] for worker in workers) == [0, 1, 2]
        assert [worker["steps"] for worker in workers] == [96, 96, 96]
        assert [worker["accepted"] for worker in workers] == [24, 24, 24]
        assert all(worker["sent_bytes"] > 24 * 4 * report["parameters"] for worker in workers)
        assert all(worker["received_bytes"] > 4 * report["parameters"] for worker in workers)
        assert report["steps"] == 288
        assert not report["refused_strangers"]


def test_two_fits_of_one_script(tmp_path: Path) -> None:
    options = {"devices": 2, "then": ["fit", "validate"], "val": True, "strategy": {"local_steps": 4}}
    options["trainer"] = {"max_steps": 24, "val_check_interval": 12}
    ended = Ended(tmp_path, options)
    assert ended.code == 0, ended.output
    zero, one = ended.ranks
    assert zero["after_fit"] == one["after_fit"]
    assert zero["second"]["after"] == one["second"]["after"] != zero["after_fit"]
    assert [rank["second"]["steps"] for rank in ended.ranks] == [48, 48]
    assert [len(rank["losses"]) for rank in ended.ranks] == [48, 48]
    assert zero["second"]["report"]["steps"] == zero["report"]["steps"] == 48
    assert zero["validate"] == one["validate"]
    assert free(ended.address)


def nobody_left(address: str) -> dict[str, Any] | None:
    """The state of a server once nobody is there any more."""
    state = ask(address, ENOUGH_S)
    return None if state["live"] or state["observers"] else state


def test_two_fits_at_a_server_that_remembers_the_first(tmp_path: Path) -> None:
    """What the ranks said to each other in the first fit must not be taken for an answer in the second."""
    with serve(tmp_path / "server", local_steps=4, workers=2) as server:
        options = {"devices": 2, "then": ["fit"], "strategy": {"server": address_of(server)}, "sleep_s": [0.0, 0.03]}
        with Program(script("train", {**options, "trainer": {"max_steps": 24}}), tmp_path) as program:
            assert program.wait() == 0
            program.wait_until_gone()
        state = eventually(lambda: nobody_left(address_of(server)), what="the leave of all")
    zero, one = results(tmp_path)
    assert zero["after_fit"] == one["after_fit"]
    assert zero["second"]["after"] == one["second"]["after"] != zero["after_fit"]
    assert [rank["second"]["steps"] for rank in (zero, one)] == [48, 48]
    assert state["steps"] == 96


def test_unequal_workers_stop_together_when_the_run_is_over(tmp_path: Path) -> None:
    """Rank 1 has made its first step when rank 0 goes on, and then takes a second for each."""
    options = {"devices": 2, "strategy": {"local_steps": 2, "total_steps": 120}, "sleep_s": [0.0, 1.0]}
    options |= {"trainer": {"max_epochs": -1}, "gate": {"0": 4}}
    ended = Ended(tmp_path, options)
    assert ended.code == 0, ended.output
    zero, one = (len(rank["losses"]) for rank in ended.ranks)
    assert 120 <= zero + one < 240, "the run should end soon after its 120th accepted step"
    assert zero > one > 0, "unequal"
    report = ended.ranks[0]["report"]
    assert report["ended"].startswith("12")
    assert ended.ranks[0]["after_fit"] == ended.ranks[1]["after_fit"]


def test_a_rank_that_is_slow_to_leave_is_no_orphan(tmp_path: Path) -> None:
    """Rank 0 has ended long before it is through."""
    ended = Ended(tmp_path, {"devices": 2, "trainer": {"max_steps": 8}, "linger_s": 8.0})
    assert ended.code == 0, ended.output
    assert "rank 0 has died" not in ended.output
    assert [rank["rank"] for rank in ended.ranks] == [0, 1]
