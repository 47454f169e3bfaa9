"""Every model of the corpus resolves and builds on meta."""

from __future__ import annotations

import pytest

from memplan.sources import build, resolve
from memplan.sources.packages import is_installed
from tests.corpus import CORPUS


@pytest.mark.corpus
@pytest.mark.parametrize("spec", CORPUS)
def test_a_model_of_the_corpus_builds_on_meta(spec: str) -> None:
    package = spec.partition(":")[0].replace("hf", "transformers")
    if not is_installed(package):
        pytest.skip(f"{package} is not installed")
    model = build(resolve(spec, batch_size=2), "meta")
    tensors = [*model.module.state_dict().values(), *model.args, *model.kwargs.values()]
    assert all(tensor.is_meta for tensor in tensors)
    assert all(tensor.shape[0] == 2 for tensor in (*model.args, *model.kwargs.values()))
