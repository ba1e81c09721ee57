"""GPT-2 as a LightningModule: `transformers.GPT2LMHeadModel` with random weights, AdamW, and two losses.

Nothing here knows that workers are far apart or unequal; this is the code of any single-device script.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.nn import functional
from transformers import GPT2Config, GPT2LMHeadModel


@dataclass(frozen=True)
class Size:
    """One model size; `tokens` is the length of its vocabulary and `block` its context in tokens."""

    layers: int
    heads: int
    width: int
    block: int
    tokens: int
    lr: float


SIZES = {
    "nano": Size(layers=4, heads=4, width=128, block=128, tokens=2048, lr=1e-3),
    "small": Size(layers=12, heads=12, width=768, block=1024, tokens=50257, lr=6e-4),  # the published 124M
    "medium": Size(layers=24, heads=16, width=1024, block=1024, tokens=50257, lr=3e-4),
}


def network(size: Size, dropout: float = 0.0) -> GPT2LMHeadModel:
    """GPT-2 of this size with random weights; input and output embeddings are one tensor."""
    config = GPT2Config(
        vocab_size=size.tokens,
        n_positions=size.block,
        n_embd=size.width,
        n_layer=size.layers,
        n_head=size.heads,
        resid_pdrop=dropout,
        embd_pdrop=dropout,
        attn_pdrop=dropout,
        use_cache=False,
        bos_token_id=0,
        eos_token_id=0,
    )
    return GPT2LMHeadModel(config)


class GPT2(LightningModule):
    """Next-token prediction on batches of `[batch, block + 1]` token ids; logs `train_loss` and `val_loss` (nats).

    Args:
        size: "nano" (about 1.1M parameters), "small" (124M) or "medium" (355M).
        lr: learning rate of AdamW; None takes the one that suits the size.
        weight_decay: of matrices and embeddings; biases and norms have none.
        warmup_steps: optimizer steps over which the learning rate rises linearly; 0 for none.
        dropout: of every dropout layer of GPT-2.
    """

    def __init__(
        self,
        size: str = "nano",
        lr: float | None = None,
        weight_decay: float = 0.1,
        warmup_steps: int = 0,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if size not in SIZES:
            raise ValueError(f"unknown size {size!r}; known: {', '.join(SIZES)}")
        self.save_hyperparameters()
        self.size = SIZES[size]
        self.model = network(self.size, dropout)
        self.lr = lr if lr is not None else self.size.lr
        self.weight_decay = weight_decay
        self.warmup_steps = warmup_steps

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits `[batch, length, vocabulary]` for token ids `[batch, length]`."""
        logits: Tensor = self.model(input_ids=tokens).logits
        return logits

    def loss(self, block: Tensor) -> Tensor:
        """Mean cross-entropy in nats of each token of `[batch, block + 1]` given those before it."""
        logits = self(block[:, :-1])
        return functional.cross_entropy(logits.flatten(0, 1).float(), block[:, 1:].flatten())

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        loss = self.loss(batch)
        self.log("train_loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        self.log("val_loss", self.loss(batch), prog_bar=True, batch_size=len(batch))

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self._groups(), lr=self.lr, betas=(0.9, 0.95))
        if not self.warmup_steps:
            return optimizer
        warmup = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / self.warmup_steps))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": warmup, "interval": "step"}}

    def _groups(self) -> list[dict[str, Any]]:
        """Decay for tensors of two or more dimensions, none for biases and norms."""
        trained: list[nn.Parameter] = [p for p in self.parameters() if p.requires_grad]
        return [
            {"params": [p for p in trained if p.dim() >= 2], "weight_decay": self.weight_decay},
            {"params": [p for p in trained if p.dim() < 2], "weight_decay": 0.0},
        ]
