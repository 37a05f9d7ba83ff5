"""The order of a run that changes on the way: what was trained on stays, what comes goes on from there."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from pretrain.config.data import SourceConfig
from pretrain.config.run import RunConfig
from pretrain.data.prepare import PreparedData, ensure_prepared
from pretrain.data.run_order import (
    OrderHistory,
    RunOrder,
    begin,
    chunk_ends,
    go_on,
    read_order,
    sample_order,
    write_order,
)
from pretrain.errors import CheckpointError, ConfigError, DataError


@pytest.fixture
def prepared(config: RunConfig) -> PreparedData:
    return ensure_prepared(config, run_root=Path(config.run.dir))


def changed(config: RunConfig, *, accept: bool = True, skip: list[str] | None = None, **shares: float) -> RunConfig:
    """The configuration with other weights (or tokens and epochs as `name__tokens=…`) and ranges to skip."""
    sources = dict(config.data.sources)
    for key, value in shares.items():
        name, _, field = key.partition("__")
        sources[name] = dataclasses.replace(sources[name], **{field or "weight": value})
    data = dataclasses.replace(config.data, sources=sources, skip=skip or [], accept_changes=accept)
    return dataclasses.replace(config, data=data)


def rows(config: RunConfig, prepared: PreparedData, history: OrderHistory, count: int) -> list[tuple[str, int, int]]:
    order = sample_order(config, prepared, history)
    found = order.locate(0, count)
    return [
        (order.sources[s], e, w)
        for s, e, w in zip(found.source.tolist(), found.epoch.tolist(), found.window.tolist(), strict=True)
    ]


def test_a_run_that_goes_on_unchanged_has_the_history_it_had(config: RunConfig, prepared: PreparedData) -> None:
    history = begin(config, prepared)
    assert go_on(history, config, prepared, consumed=24) == (history, [])
    assert OrderHistory.from_state_dict(json.loads(json.dumps(history.state_dict()))) == history


def test_other_weights_hold_from_where_the_run_stands_and_repeat_nothing(
    config: RunConfig, prepared: PreparedData
) -> None:
    history = begin(config, prepared)
    first = rows(config, prepared, history, 400)
    after = changed(config, prose=1.0, code=4.0)
    history, changes = go_on(history, after, prepared, consumed=80)
    assert changes == [
        "data.sources.code: weight 1.0, now weight 4.0",
        "data.sources.prose: weight 3.0, now weight 1.0",
    ]
    found = rows(after, prepared, history, 400)
    assert found[:80] == first[:80]
    assert abs(sum(name == "code" for name, *_ in found[80:]) - 0.8 * 320) < 1
    assert len(set(found)) == len(found), "a window came twice in an epoch"
    again = go_on(history, changed(config, prose=3.0, code=1.0), prepared, consumed=160)[0]
    assert rows(config, prepared, again, 400)[:160] == found[:160]
    assert len(set(rows(config, prepared, again, 400))) == 400


def test_a_change_at_the_very_same_place_replaces_the_one_before(config: RunConfig, prepared: PreparedData) -> None:
    history = begin(config, prepared)
    once, _ = go_on(history, changed(config, prose=1.0), prepared, consumed=80)
    twice, _ = go_on(once, changed(config, prose=2.0), prepared, consumed=80)
    assert [share.first for share in twice.shares] == [0, 80]
    assert twice == go_on(history, changed(config, prose=2.0), prepared, consumed=80)[0]
    anew, _ = go_on(history, changed(config, prose=2.0), prepared, consumed=0)
    assert anew == begin(changed(config, prose=2.0), prepared)


def test_a_change_that_was_not_accepted_is_refused(config: RunConfig, prepared: PreparedData) -> None:
    with pytest.raises(ConfigError, match=r"prose: weight 3\.0, now weight 1\.0\n.*data\.accept_changes=true"):
        go_on(begin(config, prepared), changed(config, accept=False, prose=1.0), prepared, consumed=8)
    with pytest.raises(ConfigError, match=r"data\.skip: \[\], now \['96:104'\]"):
        go_on(begin(config, prepared), changed(config, accept=False, skip=["96:104"]), prepared, consumed=8)


def test_ranges_to_skip_may_change_where_nothing_was_trained_yet(config: RunConfig, prepared: PreparedData) -> None:
    early = changed(config, skip=["8:16"])
    history = begin(early, prepared)
    whole = rows(config, prepared, begin(config, prepared), 200)
    later, changes = go_on(history, changed(config, skip=["8:16", "40:48"]), prepared, consumed=24)
    assert changes == ["data.skip: ['8:16'], now ['8:16', '40:48']"]
    assert (
        rows(early, prepared, later, 150)
        == [row for i, row in enumerate(whole) if not (8 <= i < 16 or 40 <= i < 48)][:150]
    )
    for skip in ([], ["8:20"], ["4:6", "8:16"], ["31:33"]):
        with pytest.raises(ConfigError, match="before sample 32, which was trained on already"):
            go_on(history, changed(config, skip=["8:16", *skip] if skip == ["31:33"] else skip), prepared, consumed=24)


def test_shares_change_at_the_sample_that_comes_next_where_ranges_are_skipped(
    config: RunConfig, prepared: PreparedData
) -> None:
    before = changed(config, skip=["0:16", "40:48"])
    history, _ = go_on(
        begin(before, prepared), changed(before, skip=["0:16", "40:48"], code=9.0), prepared, consumed=24
    )
    assert history.shares[1].first == 48
    assert sum(history.shares[1].drawn.values()) == 48, "windows that were skipped count as seen"


def test_a_longer_run_must_be_filled_by_the_quotas_it_was_begun_with(config: RunConfig, prepared: PreparedData) -> None:
    config.train.steps = 12
    quota = changed(config, code__tokens=40 * 32, prose__tokens=56 * 32)
    history = begin(quota, prepared)
    assert go_on(history, quota, prepared, consumed=24) == (history, [])
    longer = dataclasses.replace(quota, train=dataclasses.replace(quota.train, steps=13))
    with pytest.raises(ConfigError, match=r"96 samples.*the run takes 104 \(13 steps\)"):
        go_on(history, longer, prepared, consumed=24)


def test_tokens_and_epochs_are_met_exactly_at_the_end_of_the_run(config: RunConfig, prepared: PreparedData) -> None:
    windows = (prepared.sources["code"].train.num_tokens - 1) // 32
    code = round(0.25 * windows)
    config.train.steps = -(-(code + 50) // 8)
    quota = changed(config, code__epochs=0.25, prose__tokens=50 * 32 - 5)
    found = rows(quota, prepared, begin(quota, prepared), code + 50)
    assert sum(name == "code" for name, *_ in found) == code
    more = changed(quota, code__epochs=0.25, prose__tokens=50 * 32 + 8 * 32)
    more.train = dataclasses.replace(quota.train, steps=quota.train.steps + 1)
    history, _ = go_on(begin(quota, prepared), more, prepared, consumed=24)
    found = rows(more, prepared, history, code + 58)
    assert sum(name == "code" for name, *_ in found) == code


def test_quotas_that_do_not_fill_the_run_or_are_spent_are_refused(config: RunConfig, prepared: PreparedData) -> None:
    with pytest.raises(ConfigError, match=r"add up to 70 samples.*the run takes 80 \(10 steps\)"):
        begin(changed(config, code__tokens=30 * 32, prose__tokens=40 * 32), prepared)
    quota = changed(config, code__tokens=40 * 32, prose__tokens=40 * 32)
    history = begin(quota, prepared)
    with pytest.raises(ConfigError, match=r"data\.sources\.code: 5 samples are asked for.*12 were trained on"):
        go_on(history, changed(config, code__tokens=5 * 32, prose__tokens=75 * 32), prepared, consumed=24)


def test_the_record_in_the_run_directory_is_read_as_it_was_written(
    config: RunConfig, prepared: PreparedData, tmp_path: Path
) -> None:
    config.data.order, config.data.num_chunks = "chunked", 3
    for source in config.data.sources.values():
        source.weight = 1.0
    history = begin(config, prepared)
    ends = chunk_ends(sample_order(config, prepared, history), total_steps=1000)
    assert ends and np.all(np.diff(ends) == ends[0])
    record = RunOrder(history, str(prepared.directory), 4, ends)
    write_order(tmp_path, record)
    assert read_order(tmp_path) == record
    (tmp_path / "order.json").write_text("{}")
    with pytest.raises(DataError, match=r"order.json \(\d+ bytes\) cannot be read.*data.prepared_dir"):
        read_order(tmp_path)
    with pytest.raises(CheckpointError, match="order of samples"):
        OrderHistory.from_state_dict({"shares": 3})


def test_skipped_samples_let_chunks_end_earlier(config: RunConfig, prepared: PreparedData) -> None:
    config.data.order, config.data.num_chunks, config.data.skip = "chunked", 17, ["4:12", "30:33"]
    for source in config.data.sources.values():
        source.weight = 1.0
    order = sample_order(config, prepared)
    ends = chunk_ends(order, total_steps=40)
    chunk = order.locate(0, 40 * 8).window % 17
    # A chunk is complete with the step in which its last sample is trained on.
    last = [place for place in range(1, 40 * 8) if chunk[place] != chunk[place - 1]]
    assert ends == [-(-place // 8) for place in last] and len(ends) > 4


def test_each_order_reads_every_source_that_has_a_weight(config: RunConfig, prepared: PreparedData) -> None:
    config.data.sources["prose"].weight, config.data.sources["code"] = (
        1.0,
        dataclasses.replace(config.data.sources["code"], weight=0.0),
    )
    for order in ("mixture", "sequential", "chunked"):
        config.data.order, config.data.num_chunks = order, 2
        assert sample_order(config, prepared).sources == ("prose",)
    assert SourceConfig().weight == 1.0
