"""Where this process stands: its rank in the launch, its device, and the address at which the run's server is.

Rank 0 is rank 0 of a launch, not of a run: a machine that joins with a script of its own is a launch of its own, writes
its own logs and checkpoints, and is told apart from the others only by the server.
"""

from __future__ import annotations

import os
from typing import Any

import torch

from lightning_async.errors import ConfigError
from lightning_async.keeping import StateDir
from lightning_async.strategy import launch, naming
from lightning_async.strategy.group import Place


class RankHooks:
    """What Lightning's connector and Trainer ask a strategy about processes; mixed into AsyncWANHooks."""

    server: str | None
    parallel_devices: list[torch.device] | None
    cluster_environment: Any
    num_nodes: int
    _state_dir: str | StateDir | None
    # What the Lightning base class and build.py add.
    _launcher: Any
    _make_launcher: Any
    _tell_rank: Any

    @property
    def num_processes(self) -> int:
        """Workers that a launch starts on this node."""
        return len(self.parallel_devices) if self.parallel_devices else 1

    def set_world_ranks(self) -> None:
        """Called by the Trainer once devices and environment are known."""
        environment = self.cluster_environment
        self.local_rank = environment.local_rank() if environment is not None and self._group_size > 1 else 0
        self.global_rank = self._rank()
        if self.parallel_devices:
            self._root_device = self.parallel_devices[self.local_rank % len(self.parallel_devices)]
        self._tell_rank(self.global_rank)

    def _rank(self) -> int:
        environment = self.cluster_environment
        if environment is None or self._group_size == 1:
            return 0
        if type(environment).__name__ != "LightningEnvironment":
            return int(environment.global_rank())
        return int(environment.node_rank()) * self.num_processes + self.local_rank

    @property
    def _group_size(self) -> int:
        """Processes of this launch; 1 for a process that stands for itself."""
        return self.num_processes * self.num_nodes

    @property
    def is_global_zero(self) -> bool:
        """Whether this is rank 0 of its launch: it writes checkpoints and logs."""
        return self.global_rank == 0

    @property
    def root_device(self) -> torch.device:
        return self._root_device

    def _configure_launcher(self) -> None:
        if self.num_processes > 1:
            self._launcher = self._make_launcher()

    def _place(self) -> Place:
        environment, size = self.cluster_environment, self._group_size
        if environment is not None:
            environment.validate_settings(num_devices=self.num_processes, num_nodes=self.num_nodes)
        group = naming.group_of(environment, size)
        given_address = self.server or os.environ.get(launch.SERVER, "")
        if given_address:
            if self._state_dir and launch.GROUP not in os.environ:
                raise ConfigError(f"state_dir belongs to the server; {given_address} keeps its own")
            return Place(self.global_rank, size, group, given_address, embedded=False)
        told = launch.launched()
        if told is not None and size > 1:
            return Place(0, size, group, told.address, embedded=True)
        if self.num_nodes > 1:
            raise ConfigError(
                f"an embedded server listens on one machine only, and this launch has {self.num_nodes} nodes; "
                "run `lightning-async serve --public --address tcp://HOST:PORT` where all reach it, and pass that"
            )
        if size > 1:
            address = f"tcp://127.0.0.1:{int(environment.main_port) + 1}"
            return Place(self.global_rank, size, group, address, embedded=self.global_rank == 0)
        return Place(0, 1, group, "tcp://127.0.0.1:0", embedded=True)
