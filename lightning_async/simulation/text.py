"""A small transformer over the bytes of the standard library's source: a language model without a download.

Pre-norm GPT-2 blocks with tied embeddings, in plain torch. Workers share the whole text; their batches differ.
"""

from __future__ import annotations

import sysconfig
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from lightning_async.errors import ConfigError

TOKENS = 128  # ASCII; other bytes are one token
MOST_BYTES = 4_000_000
HELD_OUT = 50  # every 50th file is for the evaluation


@lru_cache(maxsize=1)
def corpus() -> tuple[Tensor, Tensor]:
    """(training bytes, held-out bytes), uint8 below TOKENS, of *.py of the standard library in the order of names."""
    folder = Path(sysconfig.get_paths()["stdlib"])
    files = sorted(folder.glob("*.py")) + sorted(folder.glob("[a-r]*/*.py"))
    parts: tuple[list[bytes], list[bytes]] = ([], [])
    size = 0
    for number, file in enumerate(files):
        if size < MOST_BYTES and "site-packages" not in file.parts:
            text = file.read_bytes()
            parts[number % HELD_OUT == 0].append(text)
            size += len(text)
    train, held = (torch.from_numpy(np.frombuffer(b"".join(part), np.uint8).copy()) for part in parts)
    return train.clamp_(max=TOKENS - 1), held.clamp_(max=TOKENS - 1)


@dataclass(frozen=True)
class Windows:
    """Sample i: the `block` + 1 bytes from `i` x `stride` on, int64: read but the last, told but the first."""

    text: Tensor
    block: int
    stride: int

    def __len__(self) -> int:
        return (len(self.text) - self.block - 1) // self.stride

    def __getitem__(self, index: int) -> Tensor:
        begin = index * self.stride
        return self.text[begin : begin + self.block + 1].long()


class Block(nn.Module):
    """Attention and a perceptron, each behind a norm and beside a residual."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norms = nn.ModuleList([nn.LayerNorm(width), nn.LayerNorm(width)])
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        n, t, width = x.shape
        q, k, v = self.qkv(self.norms[0](x)).view(n, t, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        seen = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(seen.transpose(1, 2).reshape(n, t, width))
        out: Tensor = x + self.mlp(self.norms[1](x))
        return out


class Transformer(nn.Module):
    """Token ids [n, t] -> logits [n, t, TOKENS]."""

    def __init__(self, layers: int, width: int, heads: int, block: int) -> None:
        super().__init__()
        self.tokens, self.places = nn.Embedding(TOKENS, width), nn.Embedding(block, width)
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(layers)))
        self.norm = nn.LayerNorm(width)
        for name, p in self.named_parameters():
            if p.dim() == 2:
                last = name.endswith(("out.weight", "mlp.2.weight"))  # what adds to the residual stream
                nn.init.normal_(p, std=0.02 / (2 * layers) ** 0.5 if last else 0.02)

    def forward(self, tokens: Tensor) -> Tensor:
        places = self.places(torch.arange(tokens.shape[1]))
        return functional.linear(self.norm(self.blocks(self.tokens(tokens) + places)), self.tokens.weight)


@dataclass(frozen=True)
class Text:
    """Next-byte cross-entropy (nats) under AdamW with a warm-up over the first `warmup` steps of each worker."""

    layers: int = 2
    width: int = 64
    heads: int = 4
    block: int = 64
    batch_size: int = 8
    lr: float = 2e-3
    warmup: int = 20

    def __post_init__(self) -> None:
        if min(self.layers, self.heads, self.block, self.batch_size) < 1 or self.width % self.heads:
            raise ConfigError(f"got {self!r}, expected sizes >= 1 and a width that {self.heads} heads divide")

    def model(self) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return Transformer(self.layers, self.width, self.heads, self.block)

    def optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        optimizer = torch.optim.AdamW(model.parameters(), lr=self.lr, betas=(0.9, 0.95), weight_decay=0.1)
        seen = 0

        def warm_up(optimizer: torch.optim.Optimizer, args: object, kwargs: object) -> None:
            nonlocal seen
            seen += 1
            for group in optimizer.param_groups:
                group["lr"] = self.lr * min(1.0, seen / max(1, self.warmup))

        optimizer.register_step_pre_hook(warm_up)
        return optimizer

    def share(self, worker: int, workers: int) -> Windows:
        return Windows(corpus()[0], self.block, 1)

    def loss(self, model: nn.Module, batch: Tensor) -> Tensor:
        return functional.cross_entropy(model(batch[:, :-1]).flatten(0, 1), batch[:, 1:].flatten())

    def evaluate(self, model: nn.Module) -> float:
        held = corpus()[1]
        samples = Windows(held, self.block, max(1, (len(held) - self.block - 1) // 256))
        return float(self.loss(model, torch.stack([samples[i] for i in range(min(256, len(samples)))])))


def text(
    layers: int = 2,
    width: int = 64,
    heads: int = 4,
    block: int = 64,
    batch_size: int = 8,
    lr: float = 2e-3,
    warmup: int = 20,
) -> Text:
    """A byte-level transformer over the standard library's source; the default has 112,384 parameters."""
    return Text(layers, width, heads, block, batch_size, lr, warmup)
