"""AsyncWANStrategy for `pytorch_lightning`."""

from lightning_async.strategy.build import build

AsyncWANStrategy = build("pytorch_lightning", "lightning_fabric", __name__)
