"""Lines so thin that one message takes longer than anybody may be silent: it is late, not dead."""

from __future__ import annotations

import pytest

from lightning_async.simulation import Result, scenario_of, simulate


def trained(kilobytes: int, mbps: float, compression: str = "none") -> Result:
    run = {"local_steps": 4, "total_steps": 16, "compression": compression}
    line = {"up_mbps": mbps, "down_mbps": mbps, "latency_ms": 50}
    task = f"synthetic(d={kilobytes * 250})"
    return simulate(
        scenario_of({"task": task, "step_s": 0.25, "run": run, "workers": [{"link": line}], "seconds": 7200})
    )


@pytest.mark.parametrize(("kilobytes", "mbps"), [(72, 0.012), (200, 0.05)])
def test_a_line_so_thin_that_what_goes_whole_looks_dead_is_found_out(kilobytes: int, mbps: float) -> None:
    result = trained(kilobytes, mbps)
    assert (result.total.acceptance, result.versions) == (1.0, 4)
    assert result.seconds < 3600


@pytest.mark.parametrize(("kilobytes", "mbps"), [(4300, 0.785), (20_000, 1.0)])
def test_an_update_that_takes_longer_than_patience_comes_through(kilobytes: int, mbps: float) -> None:
    result = trained(kilobytes, mbps)
    assert (result.total.acceptance, result.versions) == (1.0, 4)
    moved = 5 * kilobytes * 1000
    assert result.total.sent_bytes < 1.2 * moved, "nothing large was sent twice"
