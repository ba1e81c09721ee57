"""Descriptions of lines: what they refuse, their text form, and what one TCP connection gets out of them."""

from __future__ import annotations

import pytest

from lightning_async.errors import ConfigError
from lightning_async.links import LINKS, PRESETS, Brownout, Cuts, Link, link
from lightning_async.links.link import MSS_BYTES


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_goes_by_its_name_and_its_spec_makes_it_again(name):
    assert link(name) is PRESETS[name] or link(name) == PRESETS[name]
    assert link(PRESETS[name].spec) == PRESETS[name]


def test_the_presets_are_those_that_were_promised():
    names = (
        "datacenter lan wan_good wan_typical wan_slow cellular mobile_1mbps satellite degraded brownout edge straggler"
    )
    assert list(PRESETS) == names.split()
    assert set(LINKS) == {*PRESETS, "link", "cycle", "cuts"}


def test_every_field_can_be_overridden_also_for_one_direction():
    line = link("cellular(loss=0.02, up_mbps=0.5, down_latency_ms=90, down_loss=0.0)")
    up, down = line.way("up"), line.way("down")
    assert (up.mbps, up.loss, up.latency_ms) == (0.5, 0.02, PRESETS["cellular"].latency_ms)
    assert (down.mbps, down.loss, down.latency_ms) == (PRESETS["cellular"].down_mbps, 0.0, 90)
    assert line.jitter_ms == PRESETS["cellular"].jitter_ms
    assert link(line.spec) == line


def test_brownouts_and_cuts_stand_inside():
    line = link("lan(brownout=cycle(every_s=60, lasts_s=5, factor=0.1), cuts=cuts(at_mb=(20, 5), away_s=2))")
    assert line.brownout == Brownout(every_s=60, lasts_s=5, factor=0.1)
    assert line.cuts == Cuts(at_mb=(5, 20), away_s=2), "in the order in which they come"
    assert link(line.spec) == line
    assert link(line) is line


def test_a_round_trip_has_both_latencies_and_half_of_both_jitters():
    assert Link(latency_ms=10, down_latency_ms=30, jitter_ms=8).rtt_s == pytest.approx(0.048)


def test_loss_costs_rate_by_mathis_and_what_is_sent_twice_its_share():
    line = Link(up_mbps=1000.0, latency_ms=50.0, loss=0.01, down_loss=0.0, down_duplicate=0.25)
    assert line.bytes_per_s("up") == pytest.approx(MSS_BYTES / 0.1 * (1.5 / 0.01) ** 0.5)
    assert line.bytes_per_s("down") == 100e6, "of 125"
    assert Link(up_mbps=0.1, loss=0.25).bytes_per_s("up") == 10_000, "a thin line is not made faster by it"


@pytest.mark.parametrize(
    "wrong",
    [
        {"up_mbps": 0.0},
        {"latency_ms": -1.0},
        {"loss": 1.0},
        {"jitter_ms": -1.0},
        {"down_loss": -0.1},
        {"up_latency_ms": float("nan")},
        {"duplicate": 1.0},
        {"cuts": 3},
        {"brownout": Cuts()},
    ],
)
def test_an_impossible_line_is_refused(wrong):
    with pytest.raises(ConfigError, match=r"got Link.*expected"):
        Link(**wrong)


def test_an_impossible_brownout_or_cut_is_refused():
    with pytest.raises(ConfigError, match="expected 0 < lasts_s"):
        Brownout(every_s=5.0, lasts_s=6.0)
    for wrong in ({"every_s": 0.0}, {"at_s": (-1.0,)}, {"away_s": float("inf")}):
        with pytest.raises(ConfigError, match="expected every_s > 0"):
            Cuts(**wrong)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("carrier_pigeon", "unknown link 'carrier_pigeon'; known: brownout, cellular"),
        ("cellular(speed=3)", "speed"),
        ("cellular(loss='much')", "link cellular"),
        ("cellular(loss=2)", "expected rates > 0"),
        ("cycle(every_s=3, lasts_s=1)", "a part of a line"),
        ("cellular(__import__('os'))", "unknown link"),
    ],
)
def test_a_text_that_names_no_line_is_refused(text, says):
    with pytest.raises(ConfigError, match=says.replace("(", r"\(")):
        link(text)
