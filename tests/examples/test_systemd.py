"""The shipped unit: systemd takes it as it is, and its command is one of ours."""

from __future__ import annotations

import configparser
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from eventually import ENOUGH_S

from lightning_async.cli.main import parser

UNIT = Path(__file__).parents[2] / "examples" / "systemd" / "lightning-async@.service"


def unit() -> configparser.ConfigParser:
    read = configparser.ConfigParser(interpolation=None, comment_prefixes=("#",))
    read.optionxform = str  # type: ignore[assignment,method-assign]
    read.read_string(UNIT.read_text())
    return read


def test_its_command_is_one_of_ours_and_its_codes_are_those_that_we_give() -> None:
    service = unit()["Service"]
    program, *words = shlex.split(service["ExecStart"].replace("%i", "first").replace("%S", "/var/lib"))
    assert Path(program).name == "lightning-async"
    args = parser().parse_args(words)
    assert (args.command, str(args.config)) == ("serve", "/etc/lightning-async/first.yaml")
    assert args.state_dir == f"/var/lib/{service['StateDirectory'].replace('%i', 'first')}"
    assert service["Restart"] == "on-failure"
    assert service["RestartPreventExitStatus"] == "2"
    assert service["SuccessExitStatus"].split() == ["130", "143"]


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd here")
@pytest.mark.parametrize("broken", [False, True])
def test_systemd_takes_it(tmp_path: Path, broken: bool) -> None:
    """It verifies that the program is there too, so that stands for ours."""
    text = UNIT.read_text().replace("/opt/lightning-async/bin/lightning-async", sys.executable)
    file = tmp_path / UNIT.name
    file.write_text(text.replace("on-failure", "on-failing") if broken else text)
    command = ["systemd-analyze", "--man=no", "verify", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=ENOUGH_S)
    complaints = [line for line in done.stderr.splitlines() if UNIT.name in line]
    assert bool(complaints) == broken, done.stderr
