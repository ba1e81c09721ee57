"""A plain PyTorch loop with AsyncOptimizer: `python plain.py '{"server": "tcp://...", "steps": 40, "seed": 1}'`.

sleep_s     seconds that each step takes
gate        the step after which it says "gate" and waits until the file `go` is there
goodbye_s   how long it waits in the end for the server's answer to its goodbye
"""

from __future__ import annotations

import json
import sys
import time

import torch
from announcing import flat, say, wait_at_the_gate
from torch import nn

from lightning_async import AsyncOptimizer

torch.set_num_threads(1)


def main() -> None:
    options = json.loads(sys.argv[1])
    torch.manual_seed(options["seed"])
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 1))
    initial = flat(model)
    made = torch.Generator().manual_seed(7)
    weight, losses = torch.randn(8, 1, generator=made), []
    inner = torch.optim.SGD(model.parameters(), lr=0.05)
    with AsyncOptimizer(inner, model, options["server"], name=options.get("name", "")) as optimizer:
        first = flat(model)
        for step in range(1, options["steps"] + 1):
            x = torch.randn(16, 8)
            loss = nn.functional.mse_loss(model(x), x @ weight)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(float(loss.detach()))
            say("step", step=step)
            if step == options.get("gate"):
                optimizer.engine.wait(lambda: optimizer.engine._courier.idle)
                wait_at_the_gate()
            time.sleep(options.get("sleep_s", 0.0))
        if "goodbye_s" in options:
            optimizer.engine.align()
            optimizer.engine.close("done", options["goodbye_s"])
    result = {"rank": options["seed"], "initial": initial, "first": first, "losses": losses, "after": flat(model)}
    with open(f"result-{options['seed']}.json", "w") as file:
        json.dump(result, file)


if __name__ == "__main__":
    main()
