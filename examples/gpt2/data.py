"""The corpus as a LightningDataModule: fixed-length blocks of tokens, map-style, read through a memory map."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset

from examples.gpt2.corpus import cache_folder, prepare, standard_library


class Blocks(Dataset[Tensor]):
    """Block `i` is tokens `i * block` to `i * block + block`, both included: int64 `[block + 1]`, input and target."""

    def __init__(self, tokens: NDArray[np.uint16], block: int) -> None:
        self.tokens = tokens
        self.block = block

    def __len__(self) -> int:
        return (len(self.tokens) - 1) // self.block

    def __getitem__(self, index: int) -> Tensor:
        if not 0 <= index < len(self):
            raise IndexError(f"block {index} of {len(self)}")
        start = index * self.block
        return torch.from_numpy(self.tokens[start : start + self.block + 1].astype(np.int64))


class TextData(LightningDataModule):
    """Blocks of tokens from text files; whole files are held out for validation.

    Args:
        vocabulary: tokens of the BPE tokenizer that is trained on the training files.
        block: context length in tokens.
        batch_size: blocks per batch of one worker.
        text: folder with text files; None reads the standard library of the running interpreter.
        pattern: which files of that folder to read.
        cache: folder for the tokenizer and the token arrays; None is the user's cache folder.
        held_out: fraction of the files kept for validation.
        val_blocks: at most this many blocks, evenly spread over the held-out files, make one validation.
        workers: processes of each data loader.
    """

    def __init__(
        self,
        vocabulary: int = 2048,
        block: int = 128,
        batch_size: int = 8,
        text: str | None = None,
        pattern: str = "*.py",
        cache: str | None = None,
        held_out: float = 0.02,
        val_blocks: int = 256,
        workers: int = 0,
    ) -> None:
        super().__init__()
        self.vocabulary = vocabulary
        self.block = block
        self.batch_size = batch_size
        self.text = Path(text) if text else standard_library()
        self.pattern = pattern
        self.cache = Path(cache) if cache else cache_folder()
        self.held_out = held_out
        self.val_blocks = val_blocks
        self.workers = workers
        self.train: Blocks | None = None
        self.val: Dataset[Tensor] | None = None

    def prepare_data(self) -> None:
        prepare(self.text, self.cache, self.vocabulary, self.pattern, self.held_out)

    def setup(self, stage: str | None = None) -> None:
        if self.train is not None:
            return
        corpus = prepare(self.text, self.cache, self.vocabulary, self.pattern, self.held_out)
        self.train = Blocks(corpus.tokens("train"), self.block)
        held_out = Blocks(corpus.tokens("val"), self.block)
        if not len(self.train) or not len(held_out):
            raise ValueError(f"too little text for blocks of {self.block} tokens; give more files or a smaller block")
        spread = np.linspace(0, len(held_out) - 1, min(self.val_blocks, len(held_out)), dtype=int)
        self.val = Subset(held_out, [int(index) for index in spread])

    def train_dataloader(self) -> DataLoader[Tensor]:
        assert self.train is not None, "setup() comes first"
        return DataLoader(self.train, self.batch_size, shuffle=True, drop_last=True, num_workers=self.workers)

    def val_dataloader(self) -> DataLoader[Tensor]:
        assert self.val is not None, "setup() comes first"
        return DataLoader(self.val, self.batch_size, num_workers=self.workers)
