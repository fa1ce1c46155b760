"""Every decoder of others' bytes: its kept corpus, and some thousand mutations of it.

`scripts/fuzz decoders` runs longer, guided by coverage where Atheris can be installed.
"""

from __future__ import annotations

from random import Random

import pytest

from scripts.fuzzing import bodies
from tests.fuzz import corpus
from tests.fuzz.mutate import mutate
from tests.fuzz.targets import TARGETS

MUTATIONS = 300


@pytest.mark.parametrize("name", sorted(TARGETS))
def test_kept_inputs_and_their_mutations_raise_nothing(name: str) -> None:
    target = TARGETS[name]
    inputs = [*target.seeds(), *corpus.read(name)]
    rng = Random(name)
    mutations = [mutate(rng.choice(inputs), inputs, rng) for _ in range(MUTATIONS)]
    for data in [*inputs, *mutations]:
        try:
            target.run(data)
        except Exception as error:
            raise AssertionError(f"{name} fails for {data!r}") from error


def test_each_corpus_has_a_target() -> None:
    kept = {path.stem for path in corpus.FOLDER.glob("*.b64")}
    assert kept == {*TARGETS, bodies.NAME}
