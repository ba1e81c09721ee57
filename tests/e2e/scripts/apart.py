"""A worker on a host of its own: waits for `argv[2]` workers, trains until the run is over, and says how it was."""

from __future__ import annotations

import json
import sys
import threading

import torch

from lightning_async import AsyncOptimizer
from lightning_async.worker.requests import status

torch.manual_seed(0)
model = torch.nn.Linear(100, 100)
teacher = torch.randn(100, 100, generator=torch.Generator().manual_seed(1)) / 10
random = torch.Generator().manual_seed(int(sys.argv[3]))
sgd = torch.optim.SGD(model.parameters(), lr=0.1)
with AsyncOptimizer(sgd, model, sys.argv[1], name=f"worker-{sys.argv[3]}") as optimizer:
    while status(optimizer.engine)["live"] < int(sys.argv[2]):
        threading.Event().wait(0.1)
    while not optimizer.stop_asked:
        x = torch.randn(64, 100, generator=random)
        optimizer.zero_grad()
        (model(x) - x @ teacher).square().sum(1).mean().backward()
        optimizer.step()
loss = float((model.weight.detach().T - teacher).square().mean() / teacher.square().mean())
print(json.dumps({"loss": loss}), flush=True)
