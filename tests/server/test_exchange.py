"""Updates and parameters: receipts, refusals, quorum, staleness, the published chain, the end."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from room import BUFFERS, LAYOUT, START, Room, floats, raw
from torch import Tensor

from lightning_async.codecs import codec
from lightning_async.server import store
from lightning_async.telemetry import events
from lightning_async.wire import messages as m
from lightning_async.wire.checksum import checksum
from lightning_async.wire.messages import Reason

ONES = torch.ones(8)


def no(receipt: Any, reason: Reason) -> str:
    """The detail of a receipt that refuses for this reason."""
    assert isinstance(receipt, m.Receipt)
    assert (receipt.accepted, receipt.reason) == (False, reason.value), receipt
    return receipt.detail


def push(room: Room, frames: tuple[bytes, ...], **changes: Any) -> Any:
    values = {"seq": 1, "base": 0, "digest": LAYOUT.digest, **changes}
    return room.say("a", m.Push(**values), frames)


def test_an_update_is_subtracted_once_and_asking_again_gives_the_same_receipt() -> None:
    room = Room().begin("a")
    first = room.push("a", ONES, seq=1)
    assert first == m.Receipt(seq=1, accepted=True, version=0)
    again = room.push("a", ONES, seq=1, base=0)
    assert again == first
    assert torch.equal(room.parameters, START - 1)
    assert room.run.version == 1
    no(room.push("a", ONES, seq=0), Reason.SEQUENCE)


def test_a_push_that_says_what_it_has_gets_the_version_that_it_makes() -> None:
    room = Room().begin("a")
    receipt = push(room, (raw(ONES), b""), have=0)
    assert (receipt.accepted, receipt.version) == (True, 0)
    assert receipt.news == vars(m.Params(form="snapshot", version=1, included=1, digest=receipt.news["digest"]))
    assert torch.equal(floats(room.mail[b"a"][-1].payload[0]), START - 1)
    again = push(room, (raw(ONES), b""), have=1)
    assert (again.accepted, again.news["form"], room.mail[b"a"][-1].payload) == (True, "unchanged", ())
    assert push(room, (raw(ONES), b"")).news is None


@pytest.mark.parametrize(
    ("frames", "changes", "reason"),
    [
        ((raw(ONES), b""), {"digest": "x"}, Reason.LAYOUT),
        ((raw(ONES), b""), {"base": 1}, Reason.FUTURE),
        ((raw(ONES), b""), {"base": -1}, Reason.FUTURE),
        ((raw(ONES), b""), {"seq": 0}, Reason.SEQUENCE),
        ((raw(ONES), b""), {"samples": 0}, Reason.PROTOCOL),
        ((raw(ONES), b""), {"steps": 0}, Reason.PROTOCOL),
        ((raw(ONES), b""), {"steps": 321}, Reason.LIMIT),
        ((raw(ONES), b""), {"group": 1}, Reason.PROTOCOL),
        ((raw(ONES), b""), {"group": -1}, Reason.PROTOCOL),
        ((raw(ONES), b""), {"present": [0, 1]}, Reason.CONFIG),
        ((raw(ONES), b""), {"hyper": [{"lr": [1.0, 1.0]}]}, Reason.PROTOCOL),
        ((), {}, Reason.LENGTH),
        ((raw(ONES),), {}, Reason.LENGTH),
        ((raw(ONES), b"", b""), {}, Reason.LENGTH),
        ((raw(ONES[:7]), b""), {}, Reason.LENGTH),
        ((raw(torch.ones(9)), b""), {}, Reason.LENGTH),
        ((ONES.to(torch.float64).numpy().tobytes(), b""), {}, Reason.LENGTH),
        ((ONES.to(torch.float16).numpy().tobytes(), b""), {}, Reason.LENGTH),
        ((raw(ONES)[:-1], b""), {}, Reason.LENGTH),
        ((raw(ONES), raw(BUFFERS[:3])), {}, Reason.LENGTH),
        ((raw(ONES * float("nan")), b""), {}, Reason.NOT_FINITE),
        ((raw(ONES / 0), b""), {}, Reason.NOT_FINITE),
        ((raw(ONES), raw(BUFFERS * float("nan"))), {}, Reason.NOT_FINITE),
    ],
)
def test_what_is_refused_changes_nothing(frames: tuple[bytes, ...], changes: dict[str, Any], reason: Reason) -> None:
    room = Room().begin("a", "b")
    detail = no(push(room, frames, **changes), reason)
    assert detail
    assert torch.equal(room.parameters, START)
    assert torch.equal(room.buffers, BUFFERS)
    assert room.run.version == 0
    assert room.run.steps_total == 0
    member = room.run.members.named("a")
    assert member is not None
    assert member.refused == {reason.value: 1}
    assert member.accepted == 0
    assert [event.reason for event in room.events(events.Refused)] == [reason.value]
    assert room.push("b", ONES).accepted, "the others go on"
    assert room.push("a", ONES).accepted, "and so does this one"


def test_bytes_that_do_not_decode_are_refused() -> None:
    room = Room(compression="int8").begin("a")
    no(push(room, (b"\0" * 20, b"")), Reason.PAYLOAD)
    no(push(room, (b"\0" * 100_000, b""), seq=2), Reason.LENGTH)
    assert room.run.version == 0


def test_an_update_a_thousand_times_longer_than_usual_is_refused() -> None:
    room = Room().begin("a")
    for _ in range(8):
        assert room.push("a", ONES).accepted
    no(room.push("a", 2000 * ONES), Reason.NORM)
    assert room.push("a", 500 * ONES).accepted


def test_a_bound_of_zero_is_synchronous() -> None:
    room = Room(staleness="fixed(bound=0)").begin("a", "b")
    room.push("a", ONES)
    assert "staleness 1" in no(room.push("b", ONES, base=0), Reason.STALE)
    assert room.push("b", ONES, base=1).accepted


def test_staleness_is_counted_in_versions_since_the_base() -> None:
    room = Room(staleness="fixed(bound=2)").begin("a", "b")
    for _ in range(3):
        room.push("a", ONES)
    assert room.push("b", ONES, base=1).staleness == 2
    no(room.push("b", ONES, base=1), Reason.STALE)
    assert room.run.staleness.as_dict() == {"0": 3, "2": 1}


def test_the_weight_of_staleness_scales_the_step() -> None:
    room = Room(weight="polynomial(a=0.5)").begin("a", "b")
    for _ in range(3):
        room.push("a", torch.zeros(8))
    room.push("b", ONES, base=0)
    assert torch.allclose(room.parameters, START - 4**-0.5)


def test_a_step_of_several_is_their_samples_mean_times_their_mean_weight() -> None:
    room = Room(weight="polynomial(a=1.0)", quorum=2).begin("a", "b", "c")
    room.push("a", torch.zeros(8))
    room.push("b", torch.zeros(8))
    room.push("a", ONES, base=0, samples=3)
    room.push("b", 5 * ONES, base=1, samples=1)
    # weights 1/2 and 1: shares 3/2 and 1; the step has the samples-weighted mean weight (3/2 + 1) / 4
    expected = (1.5 * 1 + 1 * 5) / 2.5 * (2.5 / 4)
    assert torch.allclose(room.parameters, START - expected)


def test_a_quorum_is_of_distinct_workers_with_one_slot_each() -> None:
    room = Room(quorum=2).begin("a", "b")
    room.push("a", ONES, samples=1)
    room.push("a", 3 * ONES, samples=3)
    assert room.run.version == 0
    room.push("b", 10 * ONES, samples=4)
    assert room.run.version == 1
    assert torch.allclose(room.parameters, START - (1 * 1 + 3 * 3 + 4 * 10) / 8)
    (stepped,) = room.events(events.Stepped)
    assert stepped.workers == ("a", "b")


def test_all_waits_for_every_live_worker() -> None:
    room = Room(quorum="all").begin("a", "b", "c")
    room.push("a", ONES)
    room.push("b", ONES)
    room.wait(1.0)
    assert room.run.version == 0
    room.push("c", ONES)
    assert room.run.version == 1


def test_grace_waits_for_more_but_not_when_everybody_is_there() -> None:
    room = Room(quorum=1, grace_s=0.5).begin("a", "b")
    room.push("a", ONES)
    room.wait(0.4)
    assert room.run.version == 0
    room.wait(0.2)
    assert room.run.version == 1
    room.push("a", ONES)
    room.push("b", ONES)
    assert room.run.version == 2


def test_a_claim_of_many_samples_is_capped() -> None:
    room = Room(quorum=2).begin("a", "b")
    for _ in range(2):
        room.push("a", torch.zeros(8), samples=8)
        room.push("b", torch.zeros(8), samples=8)
    room.push("a", torch.zeros(8), samples=8)
    room.push("b", ONES, samples=10**12)
    assert torch.allclose(room.parameters, START - 128 / 136)


def test_an_update_waits_and_is_applied_though_its_worker_has_left() -> None:
    room = Room(quorum=2).begin("a", "b", "c")
    room.push("a", ONES)
    room.say("a", m.Leave())
    room.push("b", ONES)
    assert torch.allclose(room.parameters, START - 1)


def test_included_says_which_own_update_the_parameters_hold() -> None:
    room = Room(quorum=2).begin("a", "b")
    room.push("a", ONES)
    before = room.pull("a")
    room.push("b", ONES)
    after = room.pull("a")
    assert before is not None
    assert after is not None
    assert (before.message.included, after.message.included) == (0, 1)


@pytest.mark.parametrize("outer", ["sgd(lr=0.5)", "nesterov(lr=0.7, momentum=0.9)"])
def test_outer_steps_equal_a_naive_loop(outer: str) -> None:
    room = Room(outer=outer).begin("a")
    generator = torch.Generator().manual_seed(1)
    x, momentum = START.double(), torch.zeros(8, dtype=torch.float64)
    for _ in range(10):
        u = torch.randn(8, generator=generator)
        room.push("a", u)
        if outer.startswith("sgd"):
            x = x - 0.5 * u.double()
        else:
            momentum = 0.9 * momentum + u.double()
            x = x - 0.7 * (u.double() + 0.9 * momentum)
    assert torch.allclose(room.parameters.double(), x, atol=1e-5)


def test_robust_rules_ignore_a_minority() -> None:
    room = Room(aggregation="median", quorum=3).begin("a", "b", "c")
    room.push("a", ONES)
    room.push("b", ONES)
    room.push("c", 1e6 * ONES, samples=1000)
    assert torch.equal(room.parameters, START - 1)


def test_buffers_move_by_the_share_of_live_workers_and_stay_positive() -> None:
    room = Room(quorum=2).begin("a", "b", "c", "d")
    low = torch.tensor([1.0, 1.0, 1e-6, 1e-6])
    for _ in range(20):
        room.push("a", torch.zeros(8), buffers=low)
        room.push("b", torch.zeros(8), buffers=3 * low)
        assert bool((room.buffers[2:] > 0).all())
    room.push("a", torch.zeros(8), buffers=low)
    room.push("b", torch.zeros(8))
    assert bool((room.buffers[2:] > 0).all())
    fresh = Room().begin("a", "b")
    fresh.push("a", torch.zeros(8), buffers=torch.tensor([1.0, 0.0, 3.0, 1.0]))
    assert torch.allclose(fresh.buffers, torch.tensor([0.5, 0.0, 2.0, 1.0]))
    alone = Room().begin("a")
    alone.push("a", torch.zeros(8), buffers=low)
    assert torch.equal(alone.buffers, low), "a single worker's statistics are taken as they are"


def test_a_mask_of_infinities_is_a_buffer_like_any_other() -> None:
    mask = torch.tensor([0.0, float("-inf"), 1.0, 1.0])
    room = Room()
    room.hello("a", rank=0)
    room.hello("b", rank=1)
    room.say("a", m.Init(digest=LAYOUT.digest), (raw(START), raw(mask)))
    assert room.push("a", ONES, buffers=mask).accepted
    assert torch.equal(room.buffers, mask)
    no(room.push("a", ONES, buffers=-mask), Reason.NOT_FINITE)


def apply(form: m.Params, frames: tuple[Any, ...], holding: Tensor, download: str) -> Tensor:
    """What a worker that holds `holding` holds after an answer."""
    *vectors, _ = frames or (b"",)
    if form.form == "snapshot":
        return floats(vectors[0])
    for frame in vectors:
        holding = holding + codec(download).decode(frame, len(holding))
    return holding


def test_a_chain_of_half_precision_deltas_ends_at_the_published_bits() -> None:
    room = Room(download_compression="fp16").begin("a", "b")
    generator = torch.Generator().manual_seed(2)
    held, have, forms, digests = torch.empty(0), -1, [], 0
    for i in range(70):
        room.push("a", 0.01 * torch.randn(8, generator=generator))
        if i % 5 in (1, 2, 4):
            answer = room.pull("b", have)
            assert answer is not None
            held = apply(answer.message, answer.payload, held, "fp16")
            have = answer.message.version
            forms.append(answer.message.form)
            assert room.run.store is not None
            assert torch.equal(held, room.run.store.published)
            if answer.message.digest >= 0:
                digests += 1
                assert answer.message.digest == checksum(raw(held))
    assert set(forms) == {"snapshot", "deltas"}
    assert digests
    assert float((room.parameters - held).abs().max()) < 1e-4


def test_what_half_precision_leaves_out_goes_out_later() -> None:
    room = Room(download_compression="fp16").begin("a")
    for _ in range(200):
        room.push("a", torch.full((8,), 3e-9))  # less than the smallest half
    assert room.run.store is not None
    assert float((room.run.store.published - room.parameters).abs().max()) < 6.1e-8
    assert not torch.equal(room.run.store.published, START)


def test_a_version_beyond_what_the_codec_can_write_goes_out_whole() -> None:
    room = Room(download_compression="fp16").begin("a", "b")
    room.push("a", 1e-3 * ONES)
    assert room.push("a", 1e5 * ONES).accepted
    assert room.run.version == 2
    assert room.run.store is not None
    assert torch.equal(room.run.store.published, room.parameters)
    whole = room.pull("b", 1)
    assert whole is not None
    assert (whole.message.form, whole.message.version) == ("snapshot", 2)
    assert torch.equal(floats(whole.payload[0]), room.parameters)
    for _ in range(3):
        room.push("a", 1e-3 * ONES)
    then = room.pull("b", 4)
    assert then is not None
    assert then.message.form == "deltas", "and the next ones are deltas again"


def test_a_snapshot_is_sent_when_it_is_smaller_or_the_chain_is_gone() -> None:
    room = Room(download_compression="fp16").begin("a")
    for _ in range(4):
        room.push("a", ONES)
    forms = [room.pull("a", have).message.form for have in (-1, 0, 2, 3, 4)]  # type: ignore[union-attr]
    assert forms == ["snapshot", "snapshot", "snapshot", "deltas", "unchanged"]


def test_a_vector_that_was_given_out_is_never_written_again() -> None:
    room = Room().begin("a")
    answer = room.pull("a")
    assert answer is not None
    before = bytes(answer.payload[0])
    for _ in range(5):
        room.push("a", ONES)
        room.pull("a")
    assert bytes(answer.payload[0]) == before == raw(START)


def test_digests_are_computed_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "DIGEST_EVERY", 1)
    room = Room(download_compression="fp16").begin("a")
    room.push("a", ONES)
    answer = room.pull("a", 0)
    assert answer is not None
    assert answer.message.digest == checksum(raw(START - 1))


def test_a_pull_waits_for_a_newer_version() -> None:
    room = Room().begin("a", "b")
    assert room.pull("b", have=0, wait_s=5.0) is None
    room.push("a", ONES)
    (answer,) = [e for e in room.mail[b"b"] if isinstance(e.message, m.Params)]
    assert answer.message.version == 1


def test_a_pull_that_waited_long_enough_is_answered_unchanged() -> None:
    room = Room().begin("a")
    assert room.pull("a", have=0, wait_s=1.0) is None
    room.wait(1.1)
    assert room.mail[b"a"][-1].message.form == "unchanged"  # type: ignore[union-attr]


def test_a_version_that_this_server_never_made_gets_a_snapshot_at_once() -> None:
    room = Room().begin("a")
    answer = room.pull("a", have=17, wait_s=5.0)
    assert answer is not None
    assert answer.message.form == "snapshot"


def test_a_peer_that_has_gone_is_not_answered() -> None:
    room = Room().begin("a", "b")
    room.pull("b", have=0, wait_s=5.0)
    room.gone("b")
    room.push("a", ONES)
    assert not [e for e in room.mail[b"b"] if isinstance(e.message, m.Params)]


def test_the_run_ends_when_its_steps_are_in() -> None:
    room = Room(total_steps=10).begin("a", "b")
    assert room.pull("b", have=0, wait_s=5.0) is None
    assert not room.push("a", ONES, steps=6).stop
    receipt = room.push("a", ONES, steps=4)
    assert receipt.accepted
    assert receipt.stop
    assert "10 of 10" in no(room.push("b", ONES), Reason.STOPPING)
    assert room.say("b", m.Beat()).stop
    assert [event.why for event in room.events(events.Ended)] == ["10 of 10 steps are in"]
    assert room.pull("b", have=1).message.stop  # type: ignore[union-attr]
    assert room.hello("c").reason == Reason.STOPPING.value
    assert torch.equal(room.parameters, START - 2)


def test_stop_tells_those_who_wait() -> None:
    room = Room().begin("a")
    room.pull("a", have=0, wait_s=5.0)
    actions = room.coordinator.stop("enough", room.now)
    sent = [action.envelope.message for action in actions if hasattr(action, "envelope")]
    assert [message.stop for message in sent] == [True]


def test_the_repr_is_a_dashboard() -> None:
    room = Room(quorum=2).begin("a", "b")
    room.push("a", ONES)
    assert repr(room.coordinator) == "<Server v0 | workers 2/2 | quorum 1/2 | staleness p50 0 max 0>"


def test_what_waits_is_stepped_when_the_run_ends() -> None:
    room = Room(quorum=2, total_steps=3).begin("a", "b")
    room.push("a", ONES, steps=3)
    assert room.run.ended
    assert torch.equal(room.parameters, START - 1)


def test_what_waits_is_stepped_when_nobody_is_left() -> None:
    room = Room(quorum=2).begin("a", "b")
    room.push("a", ONES)
    room.say("b", m.Leave())
    assert room.run.version == 0
    room.say("a", m.Leave())
    assert room.run.version == 1
    assert torch.equal(room.run.store.published, START - 1)


def test_a_robust_rule_takes_no_leftovers() -> None:
    room = Room(aggregation="median", quorum=3, total_steps=3).begin("a", "b", "c")
    room.push("a", ONES, steps=3)
    assert room.run.ended
    assert room.run.version == 0
    assert [(event.workers, event.steps) for event in room.events(events.Unused)] == [(("a",), 3)]


@pytest.mark.parametrize(("rule", "waits"), [("mean", 0), ("median", 5)])
def test_who_leaves_is_told_what_of_its_own_waits(rule: str, waits: int) -> None:
    room = Room(aggregation=rule, quorum=3).begin("a", "b")
    room.push("a", ONES, steps=2)
    room.push("a", ONES, steps=3)
    assert room.say("b", m.Leave()).waiting == 0
    assert room.say("a", m.Leave()).waiting == waits
    assert not room.events(events.Unused), "somebody may still come"
    room.coordinator.stop("enough", room.now)
    assert room.run.version == 1 - bool(waits)


def test_who_falls_silent_may_come_back_so_nothing_is_stepped_without_a_quorum() -> None:
    room = Room(quorum=2, patience_s=5.0).begin("a", "b")
    room.push("a", ONES)
    room.wait(10.0)
    assert not room.run.members.workers()
    assert room.run.version == 0


def test_a_worker_whose_steps_have_grown_for_good_is_taken_in_again() -> None:
    room = Room().begin("a")
    for _ in range(10):
        assert room.push("a", 1e-6 * ONES).accepted
    receipts = [room.push("a", 10 * ONES) for _ in range(20)]
    assert not receipts[0].accepted
    assert receipts[-1].accepted
