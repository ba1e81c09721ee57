"""One real worker at a fixed pace: ADDRESS NAME NUMBER SECONDS_A_STEP. Says "ready" once it has imported everything.

In the end it says how long a step took on average and at most, both as a multiple of what it should have taken.
"""

from __future__ import annotations

import sys
import time

import numpy as np
import torch

from lightning_async import AsyncOptimizer
from lightning_async.simulation.tasks import batches, task

torch.set_num_threads(1)
address, name, number, step_s = sys.argv[1], sys.argv[2], int(sys.argv[3]), float(sys.argv[4])
digits = task("digits()")
model = digits.model()
inner = digits.optimizer(model)
feed = batches(digits.share(number, 4), digits.batch_size, np.random.default_rng(number))
digits.loss(model, next(feed)).backward()  # what is loaded on first use is loaded now
model.zero_grad()
print("ready", flush=True)
sys.stdin.readline()
took, since = [], time.monotonic()
with AsyncOptimizer(inner, model, address, name=name, batch_size=digits.batch_size) as optimizer:
    while not optimizer.stop_asked:
        optimizer.zero_grad()
        digits.loss(model, next(feed)).backward()
        time.sleep(max(0.0, since + step_s - time.monotonic()))
        took.append((time.monotonic() - since) / step_s)
        since += took[-1] * step_s
        optimizer.step()
print(sum(took) / len(took), max(took), flush=True)
