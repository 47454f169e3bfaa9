"""Every model of the corpus: its groups are found, pruned for real, and priced as the pruned model's own recording."""

from __future__ import annotations

import pytest

from memplan.graph.channels.groups import channel_groups
from memplan.graph.channels.resize import resized
from memplan.memory import price
from memplan.methods import METHODS
from memplan.steps import Steps
from memplan.subject import subject_of
from tests.corpus import CORPUS
from tests.graph.channels.pruning import prune_steps, some_kept

#: Models in which no channels may be dropped: all that is not pinned lies between layers that state their widths.
NONE_FREE = ("hf:gpt2",)


@pytest.mark.corpus
@pytest.mark.parametrize("name", CORPUS)
def test_a_corpus_model(name: str) -> None:
    full = METHODS["full"]
    before, after = Steps(subject_of(name)), Steps(subject_of(name))
    step = before.step(full)
    groups = channel_groups(step)
    kept = some_kept(groups)
    assert bool(kept) == (name not in NONE_FREE)
    prune_steps(after, groups, kept)
    found, pruned = resized(step, groups, kept), after.step(full)
    assert found.saved_bytes == pruned.saved_bytes
    assert price(found, alive=0).peak_bytes == price(pruned, alive=0).peak_bytes
    assert [found.flops(phase) for phase in ("forward", "backward")] == [
        pruned.flops(phase) for phase in ("forward", "backward")
    ]
