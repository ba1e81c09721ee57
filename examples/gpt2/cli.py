"""The same training from YAML: `python -m examples.gpt2.cli fit --config examples/gpt2/gpt2.yaml`."""

from __future__ import annotations

from lightning.pytorch.cli import LightningArgumentParser, LightningCLI

from examples.gpt2.data import TextData
from examples.gpt2.module import GPT2, SIZES


def vocabulary_of(size: str) -> int:
    return SIZES[size].tokens


def block_of(size: str) -> int:
    return SIZES[size].block


class GPT2CLI(LightningCLI):
    """Vocabulary and block length of the data follow the size of the model."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.link_arguments("model.size", "data.vocabulary", compute_fn=vocabulary_of)
        parser.link_arguments("model.size", "data.block", compute_fn=block_of)


def main() -> None:
    GPT2CLI(GPT2, TextData, save_config_kwargs={"overwrite": True})


if __name__ == "__main__":
    main()
