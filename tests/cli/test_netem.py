"""`lightning-async netem`: the table, the `tc` commands, and a line between two programs."""

from __future__ import annotations

import re
import signal
import socket
import sys

import pytest
from eventually import ENOUGH_S

from lightning_async.cli.main import main
from lightning_async.links import PRESETS


def test_without_a_preset_it_lists_them(capsys):
    assert main(["netem"]) == 0
    rows = capsys.readouterr().out.splitlines()
    assert [row.split()[0] for row in rows[1:]] == list(PRESETS)
    assert re.split(r"\s{2,}", rows[1 + list(PRESETS).index("satellite")])[1:5] == ["3", "25", "300", "10"]


def test_it_prints_what_tc_would_be_told(capsys):
    assert main(["netem", "--preset", "satellite", "--print-tc", "wlan7"]) == 0
    assert "tc qdisc replace dev wlan7 root handle 1: netem" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--preset", "satellite"], "give --to"),
        (["--preset", "pigeon"], "unknown link 'pigeon'"),
        (["--preset", "lan", "--to", "memory://x"], "no line that could be shaped"),
        (["--preset", "lan", "--to", "tcp://127.0.0.1:1", "--listen", "tcp://*:0"], "other machines"),
    ],
)
def test_what_cannot_be_is_said(words, says, capsys):
    assert main(["netem", *words]) == 2
    assert says in capsys.readouterr().err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_passes_bytes_on_until_a_signal_and_says_how_many(number, children):
    with socket.create_server(("127.0.0.1", 0)) as door:
        door.settimeout(ENOUGH_S)
        to = f"tcp://127.0.0.1:{door.getsockname()[1]}"
        command = [sys.executable, "-m", "lightning_async", "netem", "--preset", "wan_good(up_mbps=50)", "--to", to]
        process = children.start(command)
        line = process.stdout.readline()
        found = re.fullmatch(r"tcp://127\.0\.0\.1:(\d+) leads to (\S+) over link\(up_mbps=50, .*\)\n", line)
        assert found is not None, line
        assert found[2] == to
        with socket.create_connection(("127.0.0.1", int(found[1])), timeout=ENOUGH_S) as near:
            near.sendall(bytes(5000))
            far, _ = door.accept()
            with far:
                far.settimeout(ENOUGH_S)
                got = 0
                while got < 5000:
                    got += len(far.recv(5000))
                far.sendall(b"x")
                assert near.recv(1) == b"x", "so what went up before it has been counted"
                process.send_signal(number)
                assert process.wait(ENOUGH_S) == 0
        told = process.stdout.read()
        assert re.fullmatch(r"4\.9 KiB up, [01] B down, 0 segments lost, 0 disconnects\n", told), told
