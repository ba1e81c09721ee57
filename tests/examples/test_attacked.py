"""The setting of examples/experiments/attacked.py: who has which text, and that every attack is in the list."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("transformers")
from examples.experiments.attackers import DEVASTATING, attackers
from examples.experiments.sources import shares, sources
from examples.gpt2.corpus import END, prepare
from examples.gpt2.data import TextData
from lightning_async.attacks import ATTACKS, attack

TEXTS = {
    "bakery.py": "bread flour oven ",
    "bees.py": "held out by its name ",
    "harbour/boats.py": "sail mast ",
    "harbour/crew.py": "sail rope ",
    "quarry.py": "stone dust drill ",
}
WORDS = [{"bread", "flour", "oven"}, {"sail", "mast", "rope"}, {"stone", "dust", "drill"}]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Text of three sources in words of their own, one of them of two files."""
    folder = tmp_path_factory.mktemp("text")
    for name, text in TEXTS.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(400 * text)
    made = TextData(300, block=16, batch_size=2, text=str(folder), cache=str(folder / "cache"), held_out=0.2)
    made.setup()
    return made


def test_a_block_is_of_the_source_in_which_it_begins(data):
    tokenizer = prepare(data.text, data.cache, data.vocabulary, data.pattern, data.held_out).tokenizer
    end, found = tokenizer.token_to_id(END), sources(data)
    assert len(found) == len(data.train)
    assert set(found.tolist()) == {0, 1, 2}
    for block, source in zip(data.train, found.tolist(), strict=True):
        tokens = block.tolist()
        words = tokenizer.decode(tokens[: tokens.index(end) or 1] if end in tokens else tokens).split()
        assert not words or words[0] in WORDS[source]


@pytest.mark.parametrize("concentration", [None, 0.3])
def test_every_block_has_one_owner_and_everybody_a_batch(data, concentration):
    dealt = shares(data, 9, concentration, seed=1)
    assert np.array_equal(np.sort(np.concatenate(dealt)), np.arange(len(data.train)))
    assert min(map(len, dealt)) >= data.batch_size


def test_shares_by_source_are_unlike_and_those_at_random_are_not(data):
    found = sources(data)

    def spread(concentration):
        mixes = [np.bincount(found[mine], minlength=3) / len(mine) for mine in shares(data, 9, concentration, seed=0)]
        return float(np.std(mixes, axis=0).mean())

    assert spread(0.3) > 2 * spread(None)


def test_every_attack_is_in_the_list():
    named = {spec.partition("(")[0] for spec in attackers(10)}
    assert named == set(ATTACKS) - {"fast"}
    assert set(DEVASTATING) <= set(attackers(10))
    assert all(attack(spec) for spec in attackers(10))
