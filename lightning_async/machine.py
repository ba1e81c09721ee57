"""What a program runs on: versions, cores, memory, accelerator. Facts for people, for a scheduler, and for `doctor`."""

from __future__ import annotations

import os
import platform
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from lightning_async.version import VERSION

PACKAGES = {"torch": "torch", "lightning": "lightning", "pyzmq": "pyzmq"}
OWN = "lightning_async"  # the key of this package's own version
_MEMINFO, _STATM = Path("/proc/meminfo"), Path("/proc/self/statm")
_CGROUP = Path("/sys/fs/cgroup")
NO_LIMIT = 2**60  # bytes; a limit beyond it is none


def machine() -> dict[str, Any]:
    """Versions of what this worker runs on, and how large it is: memory (0 where the system does not say) and cores."""
    versions = {"python": platform.python_version(), "torch": str(torch.__version__), "system": platform.platform()}
    return {**versions, "memory_bytes": memory_bytes(), "cores": os.cpu_count() or 0}


def versions() -> dict[str, str]:
    """Of Python, this package and those that matter beside it; what is not installed is left out. Imports nothing."""
    found = {"python": platform.python_version(), OWN: VERSION}
    for name, package in PACKAGES.items():
        try:
            found[name] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def memory_bytes() -> int:
    """Of the machine; 0 where the system does not say."""
    return 0 if sys.platform == "win32" else max(0, os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))


def free_bytes() -> int:
    """What this process may still take: of the machine's memory, its control group's and its own limit the least.

    0 where the system does not say (it does on Linux).
    """
    return max(0, min((room for room in (_available(), _of_group(), _of_process()) if room is not None), default=0))


def device() -> str:
    """The accelerator that training would take here, with its memory; the processor where there is none."""
    if torch.cuda.is_available():
        found = torch.cuda.get_device_properties(torch.cuda.current_device())
        return f"{found.name}, {found.total_memory / 2**30:.0f} GiB, of {torch.cuda.device_count()}"
    if torch.backends.mps.is_available():
        return "mps"
    return f"cpu ({os.cpu_count() or 1} cores, {torch.get_num_threads()} threads)"


def _available() -> int | None:
    try:
        lines = _MEMINFO.read_text().splitlines()
    except OSError:
        return None
    found = [line.split()[1] for line in lines if line.startswith("MemAvailable:")]
    return int(found[0]) * 1024 if found else None


def _of_group() -> int | None:
    """Of a container, in the second version of control groups."""
    try:
        most = (_CGROUP / "memory.max").read_text().strip()
        return None if most == "max" else int(most) - int((_CGROUP / "memory.current").read_text())
    except (OSError, ValueError):
        return None


def _of_process() -> int | None:
    try:
        import resource

        most = resource.getrlimit(resource.RLIMIT_AS)[0]
        pages = int(_STATM.read_text().split()[0])
    except (ImportError, OSError):
        return None
    return None if most == resource.RLIM_INFINITY or most > NO_LIMIT else most - pages * resource.getpagesize()
