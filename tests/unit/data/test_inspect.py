"""What `python -m pretrain.data` says of a step and of a folder."""

from __future__ import annotations

import sys
import types
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from pretrain.config.run import RunConfig
from pretrain.data.__main__ import main
from pretrain.data.inspect import render, show_step
from pretrain.data.loader import BatchLoader
from pretrain.data.run_order import sample_order
from pretrain.data.prepare import ensure_prepared
from pretrain.errors import DataError


@pytest.fixture
def composed(config: RunConfig, monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Makes `pretrain.config.load.compose` answer with the test's configuration; holds what it was asked."""
    asked: list[list[str]] = []

    def compose(overrides: list[str]) -> RunConfig:
        asked.append(list(overrides))
        return config

    module = types.ModuleType("pretrain.config.load")
    module.compose = compose  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "pretrain.config.load", module)
    return asked


def test_a_step_shows_the_samples_it_trained_on(config: RunConfig) -> None:
    prepared = ensure_prepared(config, run_root=Path(config.run.dir))
    streams = {name: source.train for name, source in prepared.sources.items()}
    loader = BatchLoader(sample_order(config, prepared), streams, batch_sizes=config.batch_sizes, micro_batch_size=8)
    rows = loader.batch(16).tokens_MBT[0]
    shown = list(show_step(config, prepared, step=3))
    assert [s.sample for s in shown] == list(range(16, 24))
    for one, row in zip(shown, rows, strict=True):
        assert one.text == prepared.tokenizer.decode(row)
        assert one.documents[0].start <= one.start < one.documents[0].stop
        assert one.documents[-1].start < one.start + 33 <= one.documents[-1].stop
        assert len(one.documents) == np.count_nonzero(row[:-1] == prepared.tokenizer.eos_id) + 1
        assert f"sample {one.sample}: {one.source}" in render(one)


def test_there_is_no_step_zero(config: RunConfig) -> None:
    prepared = ensure_prepared(config, run_root=Path(config.run.dir))
    with pytest.raises(DataError, match="the first one is 1"):
        list(show_step(config, prepared, step=0))


def test_prepare_and_show_print_what_there_is(composed: list[list[str]], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["prepare", "experiment=demo", "run.seed=1"]) == 0
    out = capsys.readouterr().out
    assert "tokenising prose" in out and "complete" in out and "prose            train" in out
    assert main(["show", "experiment=demo", "--step", "2", "~track"]) == 0
    assert capsys.readouterr().out.count("sample ") == 8
    assert composed == [["experiment=demo", "run.seed=1"], ["experiment=demo", "~track"]]


def test_an_error_is_printed_without_traceback_and_sets_the_exit_status(
    composed: list[list[str]], config: RunConfig, capsys: pytest.CaptureFixture[str], write_jsonl: Callable
) -> None:
    config.data.sources["code"].paths = ["nowhere.jsonl"]
    assert main(["prepare"]) == 1
    assert "data.sources.code.paths lists 'nowhere.jsonl'" in capsys.readouterr().err
    config.data.sources = {}
    assert main(["show", "--step", "1"]) == 2


def test_an_unknown_option_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["prepare", "--stepp", "3"])
    assert "--stepp" in capsys.readouterr().err
