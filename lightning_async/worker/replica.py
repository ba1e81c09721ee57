"""The worker's copy of the run: published parameters P, the live model, and what lies between them.

    live = P - (updates sent but not yet in P) + (progress since the last one)                             (1)

`update` takes the progress out as a pseudo-gradient u = P - live - sum(sent). `merge` puts a newer P' under the live
model without losing progress: everything that (1) adds to P is added to P' instead, less the updates that P' already
holds. So with one worker nothing ever changes but rounding, and after a merge without progress live is P', bit for bit.

Where a run has fragments, an update holds the progress of one piece of the model, and that of the others stays progress
until it is their turn: (1) holds as it is, with updates that are zero outside their piece.

Memory: P, and one vector per update that is not in P yet (usually one, which is also the payload in flight). A model
in half precision cannot hold P exactly; then the values at which the round started are kept too, so that rounding
never counts as progress.

Rule of this file: main thread only; explicit dtypes everywhere, since Lightning changes the default during a step.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lightning_async.layout import Shared, flatten, split, unflatten
from lightning_async.wire.checksum import checksum

FLOAT = torch.float32


@dataclass(frozen=True)
class Arrival:
    """Newer published parameters. Either `parameters` [d] whole, or `deltas` to be added to the version before."""

    version: int
    included: int | Sequence[int]  # last own update that this version holds; with fragments, one for each
    parameters: Tensor | None
    deltas: tuple[Tensor, ...]
    buffers: Tensor
    digest: int = -1
    pieces: tuple[int, ...] = ()  # with fragments, which one each of `deltas` is of
    values: bool = False  # the deltas are what is to stand there, not what is to be added

    def holds(self, seq: int, piece: int) -> bool:
        """Whether own update `seq`, of this fragment, is in this version."""
        return seq <= (self.included if isinstance(self.included, int) else self.included[piece])


@dataclass(frozen=True, eq=False)
class _Sent:
    """An update under way or waiting for its quorum, with fragments one of a piece; `version` is where it was accepted,
    None before the receipt."""

    seq: int
    vector: Tensor
    version: int | None = None
    piece: int = 0


class Replica:
    """Published parameters beside the live tensors of `shared`. Before `load` there is none (version -1)."""

    def __init__(self, shared: Shared) -> None:
        self.shared = shared
        self.version = -1
        self.published = torch.empty(0, dtype=FLOAT)
        self.device = shared.parameters[0].device
        self._sent: list[_Sent] = []  # oldest first
        self._buffers = self._sent_buffers = torch.empty(0, dtype=FLOAT)
        self._whole = all(p.dtype == FLOAT for p in shared.parameters)
        self._start: Tensor | None = None
        self.pieces: tuple[tuple[int, ...], ...] = ()  # of a run with fragments
        self._owed: set[int] = set()  # pieces of which there is progress without a step: not sent yet, or taken back

    @property
    def owes(self) -> bool:
        """Whether there is progress without a step: an update was taken back, or its piece has not had its turn."""
        return bool(self._owed)

    @property
    def pending(self) -> tuple[int, ...]:
        """Sequence numbers of the updates that are not in the published parameters yet."""
        return tuple(sent.seq for sent in self._sent)

    def live(self) -> Tensor:
        """The live parameters, float32 [d], a copy on their device."""
        out = torch.empty(self.shared.layout.d, dtype=FLOAT, device=self.device)
        return flatten(self.shared.parameters, self.shared.layout.parameters, out)

    def live_buffers(self) -> Tensor:
        """The live float buffers, float32 [b], a copy on the CPU."""
        out = torch.empty(self.shared.layout.b, dtype=FLOAT)
        return flatten(self.shared.buffers, self.shared.layout.buffers, out)

    def load(self, arrival: Arrival) -> None:
        """Become `arrival`: the live model is overwritten by it, and nothing is pending."""
        self.published, self.version, self._buffers = self._newer(arrival), arrival.version, arrival.buffers
        self._sent.clear()
        self.show_published()

    def show_published(self) -> None:
        """Make the live model exactly the published one; `hide_published` gives pending updates back."""
        unflatten(self.published, self.shared.layout.parameters, self.shared.parameters)
        self._write_buffers(self._buffers)
        self._mark_start(None)
        self._owed.clear()

    def hide_published(self) -> None:
        """After `show_published`: add what was sent and is not published yet to the live model again."""
        if self._sent:
            self._rewrite(None)

    def update(self, seq: int) -> Tensor:
        """Progress since the last update as a pseudo-gradient, float32 [d]; it counts as sent under `seq`."""
        u = self._progress()
        self._sent.append(_Sent(seq, u))
        self._sent_buffers = self.live_buffers()
        self._mark_start(None)
        self._owed.clear()
        return u

    @property
    def owed(self) -> frozenset[int]:
        """The pieces of which there is progress without a step."""
        return frozenset(self._owed)

    def note_steps(self) -> None:
        """With fragments: steps were made since the last update, so there is progress in every piece."""
        self._owed.update(range(len(self.pieces)))

    def update_of(self, seq: int, piece: int) -> Tensor:
        """As `update`, for one piece: its progress, [its size]."""
        left = self._progress()
        sent = _Sent(seq, self.shared.layout.part(left, self.pieces[piece]), piece=piece)
        self._sent.append(sent)
        self._sent_buffers = self.live_buffers() if piece == 0 else self._sent_buffers
        self._add(left, sent, -1.0)
        self._mark_start(left)
        self._owed.discard(piece)
        return sent.vector

    def _add(self, target: Tensor, sent: _Sent, alpha: float = 1.0) -> None:
        """Add `alpha` times what was sent to a vector [d]."""
        if self.pieces:
            self.shared.layout.spread(sent.vector, self.pieces[sent.piece], target, alpha)
        else:
            target.add_(sent.vector, alpha=alpha)

    def _ranges(self, sent: _Sent) -> Iterator[tuple[int, Tensor]]:
        """(number of a tensor, what was sent of it, flat)."""
        piece = self.pieces[sent.piece] if self.pieces else range(len(self.shared.parameters))
        sizes = [self.shared.layout.parameters[i].size for i in piece]
        return zip(piece, torch.split(sent.vector, sizes), strict=True)

    def take_back(self, seq: int) -> None:
        """Update `seq` was refused: what it held is progress again and goes with the next one."""
        for sent in self._sent:
            if sent.seq == seq and self._start is not None:
                self._add(self._start, sent)
            if sent.seq == seq:
                self._owed.add(sent.piece)
        self._sent = [sent for sent in self._sent if sent.seq != seq]

    def settle(self, seq: int, version: int) -> None:
        """Update `seq` was accepted at `version`. Updates that wait in one slot will be published together, so they
        become one vector: what a long wait for a quorum holds here does not grow."""
        for own in [sent for sent in self._sent if sent.seq == seq]:
            slot = [
                sent for sent in self._sent if (sent.version, sent.piece) == (version, own.piece) and sent.seq < seq
            ]
            for before in slot[-1:]:
                own = replace(own, vector=before.vector + own.vector)
                self._sent.remove(before)
            self._sent = [replace(own, version=version) if sent.seq == seq else sent for sent in self._sent]

    def give_up(self, seq: int) -> None:
        """Update `seq` was refused and its codec keeps it: it leaves the live model and comes back with later ones."""
        progress = self._progress() if self._start is not None else None
        for sent in [sent for sent in self._sent if sent.seq == seq]:
            for i, part in self._ranges(sent):
                p = self.shared.parameters[i]
                p.data.add_(part.view(p.shape))
            self._sent.remove(sent)
        self._mark_start(progress)

    def digest(self) -> int:
        """Checksum of the published parameters, to be held against the server's."""
        return checksum(self.published.cpu().numpy().data.cast("B"))

    def discard(self, seq: int) -> None:
        """Update `seq` will never be applied and its progress is lost on purpose (it was not finite)."""
        self._sent = [sent for sent in self._sent if sent.seq != seq]
        self.show_published()
        self.hide_published()

    def merge(self, arrival: Arrival, progressed: bool) -> None:
        """Put `arrival` under the live model. `progressed`: optimizer steps were made since the last `update`."""
        progressed = progressed or self.owes
        progress = self._progress() if progressed and self._start is not None else None
        before, self.published = self.published, self._newer(arrival)
        held = [sent for sent in self._sent if arrival.holds(sent.seq, sent.piece)]
        self._sent = [sent for sent in self._sent if not arrival.holds(sent.seq, sent.piece)]
        self.version, self._buffers = arrival.version, arrival.buffers
        if progressed and progress is None:
            self._shift(before, held)
        else:
            self._rewrite(progress)
        self._merge_buffers(arrival.buffers)

    def _newer(self, arrival: Arrival) -> Tensor:
        if arrival.parameters is not None:
            return arrival.parameters.to(self.device)
        published = self.published.clone()
        for i, delta in enumerate(arrival.deltas):
            if arrival.pieces:
                piece = self.pieces[arrival.pieces[i]]
                self.shared.layout.spread(delta.to(self.device), piece, published, None if arrival.values else 1.0)
            else:
                published.add_(delta.to(self.device))
        return published

    def _shift(self, before: Tensor, held: Sequence[_Sent]) -> None:
        """live += P' - P + held, tensor by tensor: no vector of the model's size is made."""
        parts: dict[int, list[Tensor]] = {}
        for sent in held:
            for i, part in self._ranges(sent):
                parts.setdefault(i, []).append(part)
        entries = self.shared.layout.parameters
        rows = zip(self.shared.parameters, split(self.published, entries), split(before, entries), strict=True)
        for i, (p, new, old) in enumerate(rows):
            change = new - old
            for part in parts.get(i, ()):
                change.add_(part)
            p.data.add_(change.view(p.shape))

    def _rewrite(self, progress: Tensor | None) -> None:
        """live = P' - pending (- progress)."""
        target = self.published.clone() if self._sent else self.published
        for sent in self._sent:
            self._add(target, sent, -1.0)
        if progress is not None:
            target = target - progress
        unflatten(target, self.shared.layout.parameters, self.shared.parameters)
        self._mark_start(progress)

    def _progress(self) -> Tensor:
        u = self.live()
        if self._start is not None:
            return torch.sub(self._start, u, out=u)
        torch.sub(self.published, u, out=u)
        for sent in self._sent:
            self._add(u, sent, -1.0)
        return u

    def _mark_start(self, progress: Tensor | None) -> None:
        """In half precision: remember where the round started, as the model can hold it."""
        if not self._whole:
            self._start = self.live() if progress is None else self.live().add_(progress)

    def _merge_buffers(self, arrived: Tensor) -> None:
        """Take the run's buffers, except where the run holds just what we sent: then ours are newer."""
        if not arrived.numel():
            return
        live = self.live_buffers()
        if self._sent_buffers.numel():
            for entry in self.shared.layout.buffers:
                if not torch.equal(arrived[entry.range], self._sent_buffers[entry.range]):
                    live[entry.range] = arrived[entry.range]
        else:
            live = arrived
        self._write_buffers(live)

    def _write_buffers(self, values: Tensor) -> None:
        unflatten(values, self.shared.layout.buffers, self.shared.buffers)
