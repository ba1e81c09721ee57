"""When a worker asks for parameters: the standing question, what settles a push, and pauses that grow with size."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lightning_async.codecs import codec
from lightning_async.errors import PayloadError, ProtocolError
from lightning_async.layout import shared_tensors
from lightning_async.wire.messages import Params, Pull, Receipt, Refused
from lightning_async.worker import downloading
from lightning_async.worker.downloading import HOLD_S, PAUSE_S, RIDE_BYTES, Downloads

LAYOUT = shared_tensors(nn.Linear(3, 1)).layout  # 4 parameters, no buffers


class Server:
    """Keeps the questions; the test answers them. `now` is the clock of both."""

    def __init__(self, bytes_per_s: float | None = None) -> None:
        self.now, self.questions = 0.0, []
        self.side = Downloads(
            LAYOUT, lambda q, then: self.questions.append((q, then)), lambda: bytes_per_s, lambda: self.now
        )
        self.side.standing_allowed = True

    def answer(self, version: int, index: int = 0, form: str = "snapshot") -> None:
        _, then = self.questions.pop(index)
        payload = (torch.full((4,), float(version)).numpy().tobytes(), b"") if form == "snapshot" else ()
        then(Params(form=form, version=version), payload)

    def started(self) -> Server:
        self.side.fetch(lambda: None)
        self.answer(0)
        self.side.arrivals.clear()
        self.now += PAUSE_S
        self.side.tick()
        return self


def test_a_question_stands_while_nothing_newer_is_there() -> None:
    server = Server().started()
    assert [q for q, _ in server.questions] == [Pull(have=0, wait_s=HOLD_S)]
    server.side.tick()
    assert len(server.questions) == 1


def test_what_has_come_is_taken_before_more_is_asked() -> None:
    server = Server().started()
    server.answer(1)
    server.now += 10.0
    server.side.tick()
    assert not server.questions
    assert server.side.arrivals.popleft().version == 1
    server.side.tick()
    assert [q.have for q, _ in server.questions] == [1]


def test_a_receipt_without_parameters_before_it_means_there_are_none() -> None:
    server, told = Server().started(), []
    server.side.fetch(lambda: told.append("done"), after_push=True)
    assert len(server.questions) == 1, "the standing question serves"
    assert not told
    server.side.settle()
    assert told == ["done"]


def test_a_push_whose_standing_question_ran_out_asks_for_itself() -> None:
    server, told = Server().started(), []
    server.side.fetch(lambda: told.append("done"), after_push=True)
    server.answer(0, form="unchanged")
    assert [q for q, _ in server.questions] == [Pull(have=0, wait_s=0.0)]
    server.side.settle()
    assert not told
    server.answer(1)
    assert told == ["done"]
    assert server.side.have == 1


def receipt(**news: object) -> Receipt:
    return Receipt(seq=1, accepted=True, version=0, news=dict(news) or None)


def test_a_receipt_brings_the_parameters_of_a_small_model() -> None:
    server, told = Server(), []
    server.side.fetch(lambda: None)
    server.answer(0)
    assert server.side.ride(lambda: told.append("done")) == 0
    server.side.tick()
    assert not server.questions, "while they are under way, nothing else asks for them"
    server.side.came(receipt(form="snapshot", version=1), (torch.ones(4).numpy().tobytes(), b""))
    assert told == ["done"]
    assert [arrival.version for arrival in server.side.arrivals] == [0, 1]


def test_a_receipt_that_brings_nothing_is_followed_by_a_question() -> None:
    for reply in (receipt(), Refused(reason="internal", detail="")):
        server, told = Server(), []
        server.side.ride(lambda told=told: told.append("done"))
        server.side.came(reply, ())
        assert [q for q, _ in server.questions] == [Pull(have=-1)]
        assert not told
        server.answer(1)
        assert told == ["done"]


def test_news_that_are_no_parameters_are_an_error_of_the_server() -> None:
    server = Server()
    server.side.ride(lambda: None)
    with pytest.raises(ProtocolError, match="form"):
        server.side.came(receipt(version=1), ())


def test_a_standing_question_or_a_large_model_needs_no_ride() -> None:
    assert Server().started().side.ride(lambda: None) is None
    for d, have in ((RIDE_BYTES // 4, -1), (RIDE_BYTES // 4 + 1, None)):
        layout = shared_tensors(nn.Linear(d, 1, bias=False)).layout
        assert Downloads(layout, lambda q, then: None, lambda: None).ride(lambda: None) == have


def test_lockstep_is_settled_by_a_newer_version_only() -> None:
    server, told = Server().started(), []
    server.side.fetch(lambda: told.append("done"), newer=True, after_push=True)
    server.side.settle()
    server.answer(0, form="unchanged")
    assert [q for q, _ in server.questions] == [Pull(have=0, wait_s=HOLD_S)]
    server.answer(0, form="unchanged")
    assert not told
    server.answer(1)
    assert told == ["done"]


def test_a_refusal_ends_the_wait() -> None:
    server, told = Server(), []
    server.side.fetch(lambda: told.append("done"), newer=True)
    server.questions.pop()[1](Refused(reason="not_ready", detail="no parameters yet"), ())
    assert told == ["done"]


def test_standing_questions_take_a_quarter_of_a_slow_link() -> None:
    server = Server(bytes_per_s=4.0).started()
    assert not server.questions, "16 bytes at 4 bytes/s took 4 s; 12 s of pause follow"
    server.now += 11.0
    server.side.tick()
    assert not server.questions
    server.now += 1.0
    server.side.tick()
    assert len(server.questions) == 1


def test_the_same_parameters_twice_are_taken_once() -> None:
    server = Server().started()
    server.side.fetch(lambda: None)
    server.answer(2, index=1)
    server.answer(1)
    assert [arrival.version for arrival in server.side.arrivals] == [2]


def test_gradient_mode_leaves_no_question_standing() -> None:
    server = Server()
    server.side.standing_allowed = False
    server.started()
    assert not server.questions


@pytest.mark.parametrize(
    ("wide", "bytes_per_s", "packed"),
    [(False, None, False), (True, None, True), (True, 1e6, True), (True, 1e9, False)],
    ids=["small", "not measured", "slow", "fast"],
)
def test_a_snapshot_is_wanted_packed_where_that_is_sooner_there(
    wide: bool, bytes_per_s: float | None, packed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if wide:
        monkeypatch.setattr(downloading, "PACKED_BYTES", 16)
    server = Server(bytes_per_s).started()
    server.side.fetch(lambda: None)
    assert {question.packed for question, _ in server.questions} == {packed}


@pytest.mark.parametrize("form", ["snapshot", "packed"])
def test_both_forms_of_a_snapshot_are_read(form: str) -> None:
    server = Server()
    server.side.fetch(lambda: None)
    vector = torch.tensor([1.5, -0.0, 3e-40, -2e30])
    payload, _ = codec("none" if form == "snapshot" else "packed").encode(vector, {})
    _, then = server.questions.pop()
    then(Params(form=form, version=7), (bytes(payload), b""))
    arrival = server.side.arrivals.popleft()
    assert arrival.parameters is not None
    assert torch.equal(arrival.parameters.view(torch.int32), vector.view(torch.int32))
    assert server.side.have == 7


def test_a_packed_snapshot_that_is_none_is_refused() -> None:
    server = Server()
    server.side.fetch(lambda: None)
    _, then = server.questions.pop()
    with pytest.raises(PayloadError):
        then(Params(form="packed", version=7), (bytes(40), b""))


@pytest.mark.parametrize(
    "wrong",
    [
        {"pieces": [2]},
        {"pieces": [-1]},
        {"pieces": []},
        {"included_of": [1]},
        {"form": "snapshot", "included_of": [1, 2, 3]},
        {"form": "snapshot", "included_of": []},
    ],
)
def test_params_of_other_pieces_than_the_runs_are_refused(wrong: dict[str, object]) -> None:
    server = Server().started()
    server.side.begin(codec("none"), ((0,), (1,)))
    _, then = server.questions.pop()
    fields: dict[str, object] = {
        "form": "pieces",
        "version": 1,
        "base": 0,
        "included_of": [0, 0],
        "pieces": [1],
        **wrong,
    }
    size = 16 if fields["form"] == "snapshot" else 4
    with pytest.raises(ProtocolError, match="pieces"):
        then(Params(**fields), (bytes(size), b""))  # type: ignore[arg-type]


def test_pieces_in_a_run_without_them_are_refused() -> None:
    server = Server().started()
    server.side.begin(codec("none"), ())
    _, then = server.questions.pop()
    with pytest.raises(ProtocolError, match="this run has one"):
        then(Params(form="pieces", version=1, base=0, pieces=[0]), (bytes(16), b""))
