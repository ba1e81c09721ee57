"""Text files -> token arrays on disk, once per machine: split by file, train a BPE tokenizer, encode, memory-map.

A file is held out for validation when the hash of its relative path says so: the split does not depend on the order of
files, on the machine, or on which other files there are. What is prepared stands in a folder named by a digest of the
whole text and of every setting, and appears there in one rename under a lock, so processes that start together agree.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import sysconfig
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

END = "<|endoftext|>"
FORMAT = "1"  # part of the digest: raise it when the files below change their meaning
TOKEN = np.dtype("<u2")
NOT_STANDARD = {"site-packages", "dist-packages", "__pycache__"}


@dataclass(frozen=True)
class Document:
    """One text file: its path relative to the root, with `/`, and its text."""

    name: str
    text: str

    def held_out(self, fraction: float) -> bool:
        """Whether this file is for validation; about `fraction` of all files are."""
        draw = int.from_bytes(hashlib.sha256(self.name.encode()).digest()[:8], "big")
        return draw < fraction * 2**64


@dataclass(frozen=True)
class Corpus:
    """Where the prepared files of one corpus are."""

    folder: Path

    @property
    def tokenizer(self) -> Tokenizer:
        return Tokenizer.from_file(str(self.folder / "tokenizer.json"))

    def tokens(self, split: str) -> NDArray[np.uint16]:
        """The memory-mapped token ids `[n]` of "train" or "val"; read only."""
        return np.memmap(self.folder / f"{split}.bin", dtype=TOKEN, mode="r")


def standard_library() -> Path:
    """The folder with the source text of the running interpreter's standard library."""
    return Path(sysconfig.get_paths()["stdlib"])


def cache_folder() -> Path:
    """The user's cache folder for this example: below `XDG_CACHE_HOME`, or `~/.cache`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lightning_async" / "gpt2"


def read(root: Path, pattern: str) -> list[Document]:
    """Every file below `root` that matches `pattern`, in the order of names; installed packages are left out.

    Raises ValueError when there is none.
    """
    paths = sorted((p.relative_to(root).as_posix(), p) for p in root.rglob(pattern) if p.is_file())
    kept = [(name, path) for name, path in paths if NOT_STANDARD.isdisjoint(name.split("/"))]
    if not kept:
        raise ValueError(f"no file below {root} matches {pattern!r}; name a folder with text files, or another pattern")
    return [Document(name, path.read_text(encoding="utf-8", errors="replace")) for name, path in kept]


def prepare(root: Path, cache: Path, vocabulary: int, pattern: str = "*.py", held_out: float = 0.02) -> Corpus:
    """The corpus of `root`, from the cache when it is there. Safe to call from several processes at once.

    Raises ValueError when no file matches, or when one of the two splits would be empty.
    """
    if not 256 < vocabulary <= 2**16:
        raise ValueError(
            f"a vocabulary of {vocabulary} tokens; give 257 to {2**16}: bytes are tokens, ids have 16 bits"
        )
    documents = read(root, pattern)
    folder = cache / _digest(documents, vocabulary, held_out)
    if not folder.exists():
        cache.mkdir(parents=True, exist_ok=True)
        with FileLock(cache / f"{folder.name}.lock"):
            if not folder.exists():
                _build(documents, folder, vocabulary, held_out)
    return Corpus(folder)


def _digest(documents: list[Document], vocabulary: int, held_out: float) -> str:
    digest = hashlib.sha256(f"{FORMAT} {vocabulary} {held_out}".encode())
    for document in documents:
        name, text = document.name.encode(), document.text.encode("utf-8", "surrogatepass")
        digest.update(f"\0{len(name)} {len(text)}\0".encode() + name + text)
    return digest.hexdigest()[:16]


def _build(documents: list[Document], folder: Path, vocabulary: int, held_out: float) -> None:
    """Write everything beside `folder`, then rename: `folder` is either absent or complete."""
    train = [d.text for d in documents if not d.held_out(held_out)]
    val = [d.text for d in documents if d.held_out(held_out)]
    if not train or not val:
        raise ValueError(
            f"{len(train)} files to train and {len(val)} to validate on; give more files or another fraction"
        )
    print(f"preparing {len(documents)} text files, once: {folder}", flush=True)
    draft = Path(tempfile.mkdtemp(prefix=f"{folder.name}.", dir=folder.parent))
    try:
        tokenizer = _learn(train, vocabulary)
        tokenizer.save(str(draft / "tokenizer.json"))
        for split, texts in (("train", train), ("val", val)):
            _encode(tokenizer, texts).tofile(draft / f"{split}.bin")
        draft.chmod(0o755)
        draft.rename(folder)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _learn(texts: list[str], vocabulary: int) -> Tokenizer:
    """A byte-level BPE as GPT-2 has: any text can be encoded, none is unknown."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary, special_tokens=[END], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def _encode(tokenizer: Tokenizer, texts: list[str]) -> NDArray[np.uint16]:
    return np.concatenate(list(_pieces(tokenizer, texts)))


def _pieces(tokenizer: Tokenizer, texts: list[str], together: int = 64) -> Iterator[NDArray[np.uint16]]:
    """Each text's ids followed by the end token; `together` texts are encoded in parallel."""
    end = tokenizer.token_to_id(END)
    for start in range(0, len(texts), together):
        for encoding in tokenizer.encode_batch_fast(texts[start : start + together], add_special_tokens=False):
            yield np.array([*encoding.ids, end], dtype=TOKEN)
