"""What an engine refuses before any process group exists."""

from __future__ import annotations

import importlib.util

import pytest
import torch

from pretrain.config.run import RunConfig
from pretrain.engine.build import check_machine


def test_nothing_is_asked_of_the_machine_by_default() -> None:
    assert check_machine(RunConfig()) == []


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU may have it")
def test_transformer_engine_is_refused_where_it_cannot_run_with_what_is_missing() -> None:
    config = RunConfig()
    config.engine.transformer_engine = True
    (problem,) = check_machine(config)
    missing = "not installed" if importlib.util.find_spec("transformer_engine") is None else "needs a CUDA device"
    assert (
        problem.startswith("engine.transformer_engine=true: ") and missing in problem and "set it to false" in problem
    )
