"""Models in a real FSDP, of either generation, in a process group of one: says of each what becomes of it here."""

from __future__ import annotations

import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard

from lightning_async.errors import LayoutError
from lightning_async.layout import shared_tensors

CPU = torch.device("cpu")


def flat(model: nn.Sequential) -> nn.Module:
    return FullyShardedDataParallel(model, device_id=CPU)


def original(model: nn.Sequential) -> nn.Module:
    return FullyShardedDataParallel(model, device_id=CPU, use_orig_params=True)


def inside(model: nn.Sequential) -> nn.Module:
    model[1] = FullyShardedDataParallel(model[1], device_id=CPU, use_orig_params=True)
    return model


def second(model: nn.Sequential) -> nn.Module:
    fully_shard(model, mesh=init_device_mesh("cpu", (1,)))
    return model


def main() -> None:
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    for wrap in (flat, original, inside, second):
        try:
            said = f"shared {shared_tensors(wrap(nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 1)))).names}"
        except LayoutError as error:
            said = f"refused: {error}"
        print(f"{wrap.__name__}: {said}", flush=True)
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
