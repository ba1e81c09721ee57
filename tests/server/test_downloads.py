"""Lossy downloads: one encoded delta a version for everybody, digests, rejoining; and the rung of an upload."""

from __future__ import annotations

import pytest
import torch
from room import LAYOUT, START, Room, raw

from lightning_async.codecs import Codec, State, codec
from lightning_async.errors import ConfigError
from lightning_async.layout import read_manifest
from lightning_async.server.store import DIGEST_EVERY, Store
from lightning_async.telemetry import events
from lightning_async.wire import messages as m
from lightning_async.wire.checksum import checksum

WIDE = read_manifest([["w", [200, 300], "float32", "parameter"], ["b", [300], "float32", "parameter"]])
SPARSE = "topk(density=0.05, values='int8')"


def started(spec: str = SPARSE) -> Store:
    store = Store(WIDE, codec(spec))
    store.start(torch.zeros(WIDE.d), torch.empty(0))
    return store


def advance(store: Store, versions: int) -> None:
    generator = torch.Generator().manual_seed(store.version)
    for _ in range(versions):
        store.advance(lambda p: p.add_(0.01 * torch.randn(WIDE.d, generator=generator)))


def after(store: Store, held: torch.Tensor, have: int, spec: str = SPARSE) -> torch.Tensor:
    """What a worker holds once it has applied the answer."""
    answer = store.answer(have)
    if answer.form == "snapshot":
        return codec("none").decode(bytes(answer.payload[0]), WIDE.d)
    for frame in answer.payload[:-1]:
        held = held + codec(spec).decode(frame, WIDE.d)
    return held


def test_a_worker_that_holds_an_old_version_goes_on_from_it() -> None:
    store = started()
    advance(store, 1)
    held = after(store, torch.zeros(WIDE.d), -1)
    advance(store, 5)
    answer = store.answer(1)
    assert (answer.form, answer.base, len(answer.payload)) == ("deltas", 1, 6)
    assert torch.equal(after(store, held, 1), store.published)


def test_a_snapshot_comes_as_soon_as_the_deltas_are_longer_and_the_chain_is_bounded() -> None:
    store = started("topk(density=0.3, values='int8')")
    advance(store, 40)
    forms = []
    for have in range(40):
        answer = store.answer(have)
        forms.append(answer.form)
        assert sum(len(frame) for frame in answer.payload) <= 4 * WIDE.d
    assert forms == sorted(forms, reverse=True)
    assert set(forms) == {"snapshot", "deltas"}
    assert sum(len(delta.payload) for delta in store._deltas) <= 4 * WIDE.d


def test_each_version_is_encoded_once_for_any_number_of_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    store = started()
    encoded = []
    (plain,) = store._codecs

    def counted(vector: torch.Tensor, state: State) -> object:
        encoded.append(store.version)
        return plain.encode(vector, state)

    values = {name: getattr(plain, name) for name in ("spec", "init", "decode", "max_bytes")}
    monkeypatch.setattr(store, "_codecs", [Codec(encode=counted, **values)])  # type: ignore[arg-type]
    for _ in range(32):
        advance(store, 1)
        for have in range(store.version):
            store.answer(have)
    assert encoded == list(range(1, 33))


def test_who_comes_past_a_multiple_of_sixteen_is_told_the_digest() -> None:
    store = started()
    advance(store, DIGEST_EVERY + 3)
    for have in range(1, store.version):
        answer = store.answer(have)
        past = have < DIGEST_EVERY
        assert answer.digest == (checksum(raw(store.published)) if past else -1)


def test_deltas_are_of_the_codec_bound_to_the_layout() -> None:
    store = started("powersgd(rank=1)")
    store.advance(
        lambda p: p.copy_(
            torch.cat([torch.outer(torch.arange(200.0), torch.ones(300)).view(-1), START[:1].expand(300)])
        )
    )
    answer = store.answer(0)
    assert answer.form == "deltas"
    assert len(answer.payload[0]) < 4 * (200 + 300 + 300) + 100
    assert float((store.published - store.parameters).abs().max()) < 1e-3


@pytest.mark.parametrize(
    ("upload", "download"), [("none", "none"), ("fp16", "either"), ("auto", "either"), ("topk", "either")]
)
def test_the_rule_of_a_download_that_was_not_given(upload: str, download: str) -> None:
    room = Room(compression=upload)
    assert room.run.config.download_compression == codec(download).spec
    assert Room(compression=upload, download_compression="bf16").run.config.download_compression == "bf16"


def test_feedback_is_added_to_uploads_and_refused_for_downloads() -> None:
    assert Room(compression="topk(density=0.02)").run.config.compression.startswith("error_feedback(topk(density=0.02")
    with pytest.raises(ConfigError, match="feedback of its own"):
        Room(download_compression="error_feedback(topk())")


def test_a_change_of_rung_is_an_event_and_stands_in_the_report() -> None:
    room = Room(compression="auto", staleness="fixed(bound=0)").begin("a")
    member = codec("auto")
    assert member.ladder is not None
    state, digest = member.init(8), LAYOUT.digest
    for seq, rung in enumerate((6, 6, 2, 2, 9), start=1):
        state = member.ladder.to(state, rung)
        payload, state = member.encode(torch.ones(8), state)
        push = m.Push(seq=seq, base=room.run.version, digest=digest)
        assert room.say("a", push, (bytes(payload), b"")).accepted
    changes = [(event.worker, event.before, event.after) for event in room.events(events.CodecChanged)]
    specs = member.ladder.specs
    assert changes == [("a", specs[6], specs[2]), ("a", specs[2], specs[9])]
    assert room.say("a", m.Status()).state["workers"]["a"]["codec"] == specs[9]


def test_without_rungs_there_is_no_such_event() -> None:
    room = Room(compression="int8").begin("a")
    for _ in range(3):
        room.push("a", torch.ones(8))
    assert not room.events(events.CodecChanged)
    assert room.say("a", m.Status()).state["workers"]["a"]["codec"] == "int8(block=256)"


def test_a_snapshot_is_packed_for_who_asks_once_a_version(monkeypatch: pytest.MonkeyPatch) -> None:
    store, times = started(), []
    plain = store._packer
    values = {name: getattr(plain, name) for name in ("spec", "init", "decode", "max_bytes")}
    counted = Codec(encode=lambda v, s: (times.append(1), plain.encode(v, s))[1], **values)  # type: ignore[arg-type]
    monkeypatch.setattr(store, "_packer", counted)
    for _ in range(3):
        advance(store, 1)
        for _ in range(4):
            answer = store.answer(-1, packed=True)
            assert answer.form == "packed"
            assert answer.sums == tuple(checksum(frame) for frame in answer.payload)
            assert torch.equal(codec("packed").decode(answer.payload[0], WIDE.d), store.published)
        assert store.answer(-1).form == "snapshot"
    assert len(times) == 3


def test_what_packing_does_not_shorten_goes_out_plain() -> None:
    bits = torch.randint(-(2**31), 2**31 - 1, (WIDE.d,), generator=torch.Generator().manual_seed(0)).to(torch.int32)
    noise = torch.where((bits >> 23) & 255 == 255, 0, bits).view(torch.float32)
    store = Store(WIDE, codec(SPARSE))
    store.start(noise, torch.empty(0))
    answer = store.answer(-1, packed=True)
    assert answer.form == "snapshot"
    assert torch.equal(codec("none").decode(bytes(answer.payload[0]), WIDE.d), noise)


def test_deltas_that_are_longer_than_the_packed_snapshot_are_not_sent_to_who_can_read_it() -> None:
    store = started("topk(density=0.3, values='int8')")
    advance(store, 40)
    store.answer(-1, packed=True)
    longest = {
        packed: max(store.version - have for have in range(40) if store.answer(have, packed).form == "deltas")
        for packed in (False, True)
    }
    assert 0 < longest[True] < longest[False]
    for have in range(40):
        answer = store.answer(have, packed=True)
        assert sum(len(frame) for frame in answer.payload) <= store._packed_bytes


def test_sparse_and_dense_deltas_in_one_chain_are_the_published_parameters_bit_for_bit() -> None:
    spec, sizes = "either(topk(density=0.05, values='int8'), int8)", []
    store = started(spec)
    held = after(store, torch.zeros(WIDE.d), -1)
    generator = torch.Generator().manual_seed(0)
    for version in range(8):
        step = torch.randn(WIDE.d, generator=generator)
        if version % 2:
            step = step.sign() * (10 + step.abs().clamp(max=1.0))
        store.advance(lambda p, step=step: p.add_(step))
        sizes.append(len(store._deltas[-1].payload))
        held = after(store, held, version, spec)
        assert torch.equal(held, store.published)
    assert max(sizes[0::2]) < 0.15 * WIDE.d
    assert min(sizes[1::2]) > WIDE.d
    store._deltas.clear()
    assert torch.equal(after(store, torch.zeros(WIDE.d), 0, spec), held)


@pytest.mark.parametrize("wait_s", [0.0, 5.0])
def test_only_a_question_that_says_so_is_answered_packed_held_or_not(
    wait_s: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    room = Room().begin("a", "b")
    plain = codec("packed")
    values = {name: getattr(plain, name) for name in ("spec", "init", "decode", "max_bytes")}
    monkeypatch.setattr(room.run.store, "_packer", Codec(encode=lambda v, s: (b"short", s), **values))
    answers = []
    for packed in (False, True):
        room.ask("b", m.Pull(have=room.run.version if wait_s else -1, wait_s=wait_s, packed=packed))
        room.push("a", torch.ones(8))
        answers.append(room.mail[b"b"][-1])
    assert [envelope.message.form for envelope in answers] == ["snapshot", "packed"]  # type: ignore[union-attr]
    assert answers[1].payload[0] == b"short"
