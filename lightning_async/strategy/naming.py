"""The name of a launch group: the same for all its processes and for no other launch, neither before nor beside it.

What the groups of a run say on its server's board stands under these names (group.py), and a remote server outlives
many launches: one that took the words of an earlier one for its own would not wait for ranks that have not come.
"""

from __future__ import annotations

import os
import socket
import uuid
from datetime import timedelta
from functools import cache
from typing import Any

from torch.distributed import is_available

from lightning_async.errors import NetworkError
from lightning_async.strategy import launch

SLURM = ("SLURM_JOB_ID", "SLURM_STEP_ID", "SLURM_RESTART_COUNT")  # of one step; a job may hold several, and run again
TORCHRUN = ("TORCHELASTIC_RUN_ID", "MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_RESTART_COUNT")
AGREE_S = 60.0


def group_of(environment: Any, size: int) -> str:
    """The name of this process's launch group. Raises NetworkError where torchrun's own store does not answer."""
    told = launch.launched()
    given = os.environ.get(launch.GROUP) or (told.group if told is not None else "")
    if given or size == 1:
        return given or uuid.uuid4().hex[:8]
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True" and is_available():
        return f"torchrun-{_of(TORCHRUN)}-{agreed(_of(TORCHRUN))}"
    if os.environ.get("SLURM_JOB_ID"):
        return f"slurm-{_of(SLURM)}"
    if os.environ.get("LSB_JOBID"):
        return f"lsf-{os.environ['LSB_JOBID']}"
    # The processes that one program starts have one parent; an address and a port are reused by every later job.
    return f"{socket.gethostname()}-{environment.main_port}-{os.getppid()}"


@cache
def agreed(attempt: str) -> str:
    """What rank 0 of this torchrun has made up for `attempt`, over the store that its agents share."""
    from torch.distributed import TCPStore  # type: ignore[attr-defined]  # which not every build has

    place = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    key = f"lightning_async/{attempt}"
    try:
        store = TCPStore(*place, is_master=False, timeout=timedelta(seconds=AGREE_S))
        if os.environ.get("RANK") == "0":
            store.set(key, uuid.uuid4().hex[:8])
        return str(store.get(key).decode())
    except RuntimeError as error:  # torch's DistError
        raise NetworkError(
            f"torchrun's store at {place[0]}:{place[1]} has not said within {AGREE_S:.0f} s how this launch is called: "
            f"{error}. Check that all its nodes have started and reach that address"
        ) from error


def _of(names: tuple[str, ...]) -> str:
    return "-".join(os.environ.get(name, "") for name in names)
