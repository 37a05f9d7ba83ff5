"""How often a run reads its sources, counted sample by sample and in closed form."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from pretrain.config.run import RunConfig
from pretrain.data.__main__ import main
from pretrain.data.epochs import MOST_EPOCHS, fields, planned_epochs, repeated_sources, warning
from pretrain.data.order import SampleOrder
from pretrain.data.prepare import PreparedData, ensure_prepared
from pretrain.data.run_order import begin, go_on, sample_order


@pytest.fixture
def prepared(config: RunConfig) -> PreparedData:
    return ensure_prepared(config, run_root=Path(config.run.dir))


def counted(order: SampleOrder, num_samples: int) -> np.ndarray:
    """One sample after the other."""
    return np.bincount(order.locate(0, num_samples).source, minlength=len(order.sources))


def with_data(config: RunConfig, **data: object) -> RunConfig:
    return dataclasses.replace(config, data=dataclasses.replace(config.data, **data))


def shared(config: RunConfig, **shares: float | int) -> RunConfig:
    """The configuration with other shares, as `code__weight=2.0` or `prose__epochs=5.0`."""
    sources = dict(config.data.sources)
    for key, value in shares.items():
        name, field = key.split("__")
        sources[name] = dataclasses.replace(sources[name], **{field: value})
    return with_data(config, sources=sources)


def settled(order: SampleOrder, num_samples: int) -> dict[str, float]:
    """Epochs of the sources that are read too often, sample by sample."""
    epochs = counted(order, num_samples) / np.array(order.num_windows)
    found = {name: float(n) for name, n in zip(order.sources, epochs, strict=True) if n > MOST_EPOCHS}
    return dict(sorted(found.items(), key=lambda item: -item[1]))


def epochs_of(order: SampleOrder, num_samples: int) -> dict[str, float]:
    return {name: one.epochs for name, one in repeated_sources(order, num_samples=num_samples).items()}


@pytest.mark.parametrize("skip", [[], ["8:16", "300:1301"]])
@pytest.mark.parametrize("order", ["mixture", "sequential"])
def test_epochs_are_those_of_every_sample_taken_together(
    order: str, skip: list[str], config: RunConfig, prepared: PreparedData
) -> None:
    if order == "sequential":
        config = shared(config, prose__weight=1.0)
    run = sample_order(with_data(config, order=order, skip=skip), prepared)
    seen = set()
    for count in (0, 1, 7, 500, 4097, 6000, 9001):
        assert run.counts(count).tolist() == counted(run, count).tolist(), count
        assert epochs_of(run, count) == pytest.approx(settled(run, count), rel=1e-12)
        seen |= set(epochs_of(run, count))
    assert seen == {"code", "prose"}, "runs that are long enough"


def test_epochs_of_chunks_are_those_of_the_samples_on_average(config: RunConfig, prepared: PreparedData) -> None:
    chunked = with_data(shared(config, prose__weight=1.0), order="chunked", num_chunks=11)
    orders = [
        sample_order(dataclasses.replace(chunked, run=dataclasses.replace(chunked.run, seed=seed)), prepared)
        for seed in range(30)
    ]
    order = orders[0].order
    per_pass = int(order.chunk_steps.sum() * 8)  # type: ignore[attr-defined]
    assert order.dropped.sum() > 0  # type: ignore[attr-defined]
    for count in (0, 3, per_pass // 2, per_pass, 5 * per_pass + 3):
        mean = np.mean([counted(order, count) for order in orders], axis=0)
        assert orders[0].counts(count).sum() == pytest.approx(count)
        # A sample more or less of a chunk that has begun, and of each chunk's dropped ones.
        assert np.abs(orders[0].counts(count) - mean).max() <= 1 + 0.01 * count
    assert epochs_of(orders[0], 3 * per_pass) == {}
    for epochs in epochs_of(orders[0], 6 * per_pass).values():
        assert 5 < epochs <= 6, "some samples of each pass are dropped"


def test_epochs_of_a_run_whose_shares_changed_are_those_of_the_whole_run(
    config: RunConfig, prepared: PreparedData
) -> None:
    history = begin(config, prepared)
    for consumed, shares in ((1600, {"code__weight": 9.0}), (4000, {"code__weight": 0.5, "prose__weight": 2.0})):
        config = with_data(shared(config, **shares), accept_changes=True)
        history, _ = go_on(history, config, prepared, consumed=consumed)
        order = sample_order(config, prepared, history)
        assert order.counts(8000).tolist() == counted(order, 8000).tolist()
        assert epochs_of(order, 8000) == pytest.approx(settled(order, 8000), rel=1e-12)
        assert epochs_of(order, 8000)


def test_four_epochs_are_no_news_and_more_are(config: RunConfig, prepared: PreparedData) -> None:
    windows = {name: (source.train.num_tokens - 1) // 32 for name, source in prepared.sources.items()}
    for epochs, is_news in ((4.0, False), (4.5, True)):
        run = shared(config, code__epochs=epochs, prose__tokens=32 * 64)
        samples = round(epochs * windows["code"]) + 64
        run = dataclasses.replace(run, train=dataclasses.replace(run.train, steps=-(-samples // 8)))
        order = sample_order(run, prepared)
        found = repeated_sources(order, num_samples=samples)
        assert list(found) == (["code"] if is_news else [])
    assert found["code"].epochs == pytest.approx(4.5, abs=1 / windows["code"])
    assert found["code"].epoch_tokens == windows["code"] * 32
    said = warning(found)
    assert f"code 4.5 times ({found['code'].tokens:,} tokens are trained on, it has {windows['code'] * 32:,})" in said
    assert json.loads(json.dumps(fields(found)))["sources"]["code"]["tokens"] == found["code"].tokens


def test_published_sizes_say_it_before_there_is_text(config: RunConfig) -> None:
    assert planned_epochs(config) == {} and planned_epochs(with_data(config, order="sequential")) == {}
    total = 10 * 8 * 32
    known = shared(config, code__expected_tokens=160)
    assert planned_epochs(known) == {"code": total / 4 / 160}
    quota = shared(known, code__tokens=480, prose__epochs=7.5)
    assert planned_epochs(quota) == {"code": 3.0, "prose": 7.5}
    both = shared(known, prose__expected_tokens=480, prose__weight=1.0)
    assert planned_epochs(with_data(both, order="sequential")) == dict.fromkeys(("code", "prose"), total / 640)
    assert planned_epochs(shared(both, prose__weight=0.0)) == {"code": total / 160}


def test_prepare_says_what_a_run_would_warn_of(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"text": f"Document {i} of a few words."}) + "\n" for i in range(400)))
    command = ["prepare", "data=files", f"data.sources.mine.paths=[{path}]", f"run.dir={tmp_path / 'runs'}"]
    command += ["tokenizer.vocab_size=300", "train.sequence_length=32", "train.global_batch_size=8"]
    assert main([*command, "train.steps=1"]) == 0
    assert "warning" not in capsys.readouterr().err
    assert main([*command, "train.steps=1000"]) == 0
    assert "warning: The run reads mine " in capsys.readouterr().err
    assert main([*command, "train.steps=1", "train.sequence_length=1048576"]) == 0
    assert "warning: A run with this configuration would be refused: " in capsys.readouterr().err
