"""What an engine refuses before any process group exists."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest
import torch

import pretrain
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


def test_nothing_but_build_asks_which_engine_it_is() -> None:
    """What differs between engines is behind `pretrain/engine/build.py`, in capabilities or in `planning.py`."""
    asks = re.compile(r"""engine\.name\s*(==|!=|in\b)|["'](megatron|deepspeed)["']\s*(==|!=)""")
    root = Path(pretrain.__path__[0])
    files = [*root.rglob("*.py"), *root.with_name("probes").rglob("*.py")]
    found = {str(path.relative_to(root.parent)) for path in files if asks.search(path.read_text("utf-8"))}
    assert found == {"pretrain/engine/build.py"}
