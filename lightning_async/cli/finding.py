"""What the doctor found, as far as it got."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from lightning_async.cli.measuring import Measured
from lightning_async.cli.trouble import Trouble

if TYPE_CHECKING:
    from lightning_async.cli.costing import Cost


@dataclass
class Finding:
    """Filled in step by step; what is None was not reached."""

    address: str
    troubles: list[Trouble] = field(default_factory=list)
    speaks: str = ""
    here: dict[str, Any] = field(default_factory=dict)
    state: dict[str, Any] | None = None
    line: Measured | None = None
    cost: Cost | None = None

    def values(self) -> dict[str, Any]:
        """Plain values, for `--json`."""
        return {
            "address": self.address,
            "well": not self.troubles,
            "troubles": [{"code": t.code, "what": t.what, "do": t.do} for t in self.troubles],
            "speaks": self.speaks,
            "here": self.here,
            "line": None if self.line is None else asdict(self.line),
            "run": None if self.state is None else {k: self.state[k] for k in ("run", "version", "parameters", "live")},
            "round": None if self.cost is None else asdict(self.cost),
        }
