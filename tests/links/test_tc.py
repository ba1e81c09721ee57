"""The `tc` commands for a line: the numbers of the line, in netem's words."""

from __future__ import annotations

from lightning_async.links import link
from lightning_async.links.tc import tc_commands


def test_both_directions_have_the_numbers_of_the_line():
    commands = tc_commands(link("degraded(down_loss=0.0, down_duplicate=0)"), "wlan0")
    assert commands[0].startswith("tc qdisc replace dev wlan0 root handle 1: netem limit ")
    assert commands[0].endswith("delay 110ms 30ms loss 2% duplicate 1% rate 5000000bit"), "a mean, give or take"
    assert commands[5].startswith("tc qdisc replace dev ifb0 root")
    assert commands[5].endswith("delay 110ms 30ms rate 10000000bit")
    assert "action mirred egress redirect dev ifb0" in commands[4]
    assert commands[-3:] == ["tc qdisc del dev wlan0 root", "tc qdisc del dev wlan0 ingress", "ip link del ifb0"]


def test_a_steady_line_has_no_jitter_and_the_queue_holds_what_is_under_way():
    first = tc_commands(link("satellite(jitter_ms=0)"))[0]
    assert "limit 100 delay 300ms rate 3000000bit" in first, "3e6 / 8 * 0.4 s in packets of 1500 bytes"


def test_a_brownout_is_a_loop_and_cuts_are_named():
    text = "\n".join(tc_commands(link("brownout(cuts=cuts(every_s=30.0))")))
    assert "# every 60 s, for 10 s:" in text
    assert text.index("sleep 50") < text.index("rate 400000bit") < text.index("sleep 10\n")
    assert "cuts(every_s=30.0): tc cannot break connections" in text
