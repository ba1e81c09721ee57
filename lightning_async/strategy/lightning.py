"""AsyncWANStrategy for `lightning.pytorch`."""

from lightning_async.strategy.build import build

AsyncWANStrategy = build("lightning.pytorch", "lightning.fabric", __name__)
