"""Composition: what a command line becomes, and the text, hashes and differences of a configuration."""

from __future__ import annotations

import dataclasses
import functools
import json
from pathlib import Path

import pytest

from pretrain.config.checks import check
from pretrain.config.load import (
    compose,
    config_folder,
    config_hash,
    data_changes,
    difference,
    from_plain,
    identity_hash,
    load_yaml,
    to_plain,
    to_yaml,
)
from pretrain.config.run import RunConfig
from pretrain.errors import ConfigError


@functools.cache
def compose_once(*overrides: str) -> RunConfig:
    return compose(overrides)


def options(group: str) -> list[str]:
    return sorted(path.stem for path in (config_folder() / group).glob("*.yaml"))


@pytest.mark.parametrize("experiment", options("experiment"))
def test_every_experiment_composes_and_passes_every_check(experiment: str) -> None:
    check(compose([f"experiment={experiment}"]), files=False)


GROUPS = [
    "model",
    "data",
    "tokenizer",
    "optimizer",
    "schedule",
    "engine",
    "precision",
    "checkpoint",
    "probe",
    "track",
    "cluster",
]


@pytest.mark.parametrize("index", range(max(len(options(group)) for group in GROUPS)))
def test_every_option_of_every_group_fits_the_schema(index: int) -> None:
    choices = [f"{group}={options(group)[index % len(options(group))]}" for group in GROUPS]
    assert isinstance(compose(choices), RunConfig)


def test_the_demo_runs_on_one_and_two_processes() -> None:
    config = compose(["experiment=demo"])
    for world_size in (1, 2):
        check(config, world_size)
    check(compose(["experiment=demo", "parallel.tensor=2"]), 2)
    early = [step for step in config.checkpoint.early if step <= config.total_steps]
    every = int(config.checkpoint.every.split()[0])
    assert 0 in early
    assert len({*early, *range(every, config.total_steps + 1, every), config.total_steps}) >= 8


def test_the_command_line_wins_over_the_experiment_and_the_experiment_over_the_defaults() -> None:
    config = compose(["experiment=demo", "precision=bf16", "parallel.tensor=2", "run.name=x"])
    assert (config.precision.compute, config.parallel.tensor, config.run.name) == ("bf16", 2, "x")
    assert config.model.hidden_size == 96


def test_track_takes_a_list_and_switches_only_those_views_on() -> None:
    track = compose(["experiment=demo", "track=[jsonl,tensorboard]"]).track
    assert (track.jsonl.enabled, track.tensorboard.enabled) == (True, True)
    assert (track.console.enabled, track.wandb.enabled) == (False, False)
    assert compose(["track=console"]).track.console.enabled


def test_sources_can_be_added_changed_and_removed_by_name() -> None:
    config = compose(
        [
            "data=files",
            "data.sources.wiki.paths=[/data/wiki/*.jsonl.zst]",
            "data.sources.wiki.weight=0.5",
            "+data.sources.code.paths=[c.jsonl]",
        ]
    )
    assert config.data.sources["wiki"].paths == ["/data/wiki/*.jsonl.zst"]
    assert (config.data.sources["wiki"].weight, config.data.sources["code"].weight) == (0.5, 1.0)
    fewer = compose(["data=bundled", "~data.sources.web", "data.sources.code.weight=2"])
    assert "web" not in fewer.data.sources
    assert fewer.data.sources["code"].weight == 2
    assert fewer.data.sources["code"].paths == ["bundled:code"]


def test_a_folder_of_ones_own_adds_options_to_groups(tmp_path: Path) -> None:
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text(
        "# @package _global_\ndefaults:\n  - override /model: demo\ntrain:\n  steps: 7\n"
    )
    assert compose(["experiment=mine"], config_dir=tmp_path).train.steps == 7
    with pytest.raises(ConfigError, match="mine"):
        compose(["experiment=mine"])


def test_a_wrong_key_in_a_file_is_named_with_the_nearest_right_one(tmp_path: Path) -> None:
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text("# @package _global_\ntrain:\n  stepps: 7\n")
    with pytest.raises(ConfigError, match=r"experiment/mine.*train\.stepps.*train\.steps"):
        compose(["experiment=mine"], config_dir=tmp_path)


def test_a_configuration_survives_yaml_and_json(tmp_path: Path) -> None:
    config = compose(["experiment=amber_7b"])
    path = tmp_path / "config.yaml"
    path.write_text(to_yaml(config))
    assert load_yaml(path) == config
    assert from_plain(json.loads(json.dumps(to_plain(config)))) == config


def test_a_file_with_unknown_keys_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("train: {stepps: 3}\n")
    with pytest.raises(ConfigError, match="stepps"):
        load_yaml(path)
    path.write_text("- 1\n")
    with pytest.raises(ConfigError, match="list"):
        load_yaml(path)
    with pytest.raises(ConfigError, match=r"missing\.yaml"):
        load_yaml(tmp_path / "missing.yaml")


def test_composing_twice_gives_equal_configurations_and_hashes() -> None:
    first, second = compose(["experiment=demo"]), compose(["experiment=demo"])
    assert first == second
    assert config_hash(first) == config_hash(second)
    assert len(config_hash(first)) == 16


LAYOUT_ONLY = [
    "parallel.tensor=2",
    "train.micro_batch_size=2",
    "train.steps=500",
    "probe=off",
    "track=[]",
    "checkpoint.keep=1",
    "engine.bucket_size=1000",
    "data.prepared_dir=/elsewhere",
    "run.name=other",
    "cluster.nodes=2",
]


@pytest.mark.parametrize("override", LAYOUT_ONLY)
def test_what_does_not_change_the_trajectory_does_not_change_the_identity(override: str) -> None:
    base, changed = compose_once("experiment=demo"), compose(["experiment=demo", override])
    assert config_hash(base) != config_hash(changed)
    assert identity_hash(base) == identity_hash(changed)
    assert difference(base, changed) == []


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("model.hidden_size=240", "model.hidden_size: 96, now 240"),
        ("run.seed=1", "run.seed: 0, now 1"),
        ("train.global_batch_size=32", "train.global_batch_size: 8, now 32"),
        (
            "train.batch_ramp=[{until: 1M tokens, global_batch_size: 4}]",
            'train.batch_ramp: [], now [{"until": "1M tokens", "global_batch_size": 4}]',
        ),
        ("optimizer.z_loss=1e-4", "optimizer.z_loss: 0.0, now 0.0001"),
        ("precision=bf16", 'precision.compute: "fp32", now "bf16"'),
        ("data.order=chunked", 'data.order: "mixture", now "chunked"'),
        ("~data.sources.qa", 'data.sources.qa.paths: ["bundled:qa"], now absent'),
        ("tokenizer.vocab_size=4096", "tokenizer.vocab_size: 2048, now 4096"),
    ],
)
def test_what_changes_the_trajectory_is_told_in_words(override: str, line: str) -> None:
    base, changed = compose_once("experiment=demo"), compose(["experiment=demo", override])
    assert identity_hash(base) != identity_hash(changed)
    assert line in difference(base, changed)


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("data.sources.web.weight=1", "data.sources.web.weight: 68.51, now 1.0"),
        ("data.sources.web.tokens=5000", "data.sources.web.tokens: null, now 5000"),
        ('data.skip=["8:16"]', 'data.skip: [], now ["8:16"]'),
    ],
)
def test_what_may_change_on_the_way_is_no_part_of_the_identity_but_is_told(override: str, line: str) -> None:
    base, changed = compose_once("experiment=demo"), compose(["experiment=demo", override])
    assert identity_hash(base) == identity_hash(changed)
    assert data_changes(base, changed) == [line]


def test_configuration_classes_accept_no_misspelt_attribute() -> None:
    config = RunConfig()
    for section in (config, *(getattr(config, field.name) for field in dataclasses.fields(config))):
        with pytest.raises(AttributeError):
            section.stepps = 1
