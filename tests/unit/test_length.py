"""A run that goes on with another length: what the learning rate does, and that somebody must accept it."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import pytest

from pretrain.checkpoint.reader import list_checkpoints
from pretrain.config.load import changed_settings, compose, config_hash, identity_hash, load_yaml
from pretrain.config.run import RunConfig
from pretrain.directory import claim, record
from pretrain.errors import ConfigError
from pretrain.length import check_length
from pretrain.locate import CONFIG_NAME

STEP_TOKENS = 8 * 512
COSINE = ("schedule=cosine", "schedule.learning_rate=1e-3", "schedule.min_learning_rate=1e-4")


def config(steps: int, *more: str) -> RunConfig:
    return compose(
        [
            "experiment=demo",
            *COSINE,
            "schedule.warmup=100 steps",
            "train.global_batch_size=8",
            "train.sequence_length=512",
            f"train.steps={steps}",
            "run.name=mine",
            *more,
        ]
    )


def cosine(step: int, steps: int) -> float:
    return 1e-4 + 0.5 * (1 + math.cos(math.pi * (step - 100) / (steps - 100))) * 9e-4


def test_a_changed_length_is_refused_with_both_learning_rates_and_the_remedy() -> None:
    with pytest.raises(ConfigError) as refused:
        check_length(config(1000), config(3000), step=550, tokens=550 * STEP_TOKENS)
    told = str(refused.value)
    assert f"from {cosine(550, 1000):.6g} to {cosine(550, 3000):.6g}" in told
    assert "mine has reached step 550" in told and "1,000 steps (4,096,000 tokens) to 3,000 steps" in told
    assert "Restore train.steps=1000" in told and "train.accept_new_length=true" in told


def test_an_accepted_length_is_told_with_both_lengths_and_both_learning_rates() -> None:
    accepted = config(3000, "train.accept_new_length=true")
    change = check_length(config(1000), accepted, step=550, tokens=550 * STEP_TOKENS)
    assert change is not None
    assert change.fields() == {
        "steps_before": 1000,
        "steps_now": 3000,
        "tokens_before": 1000 * STEP_TOKENS,
        "tokens_now": 3000 * STEP_TOKENS,
        "learning_rate_before": pytest.approx(cosine(550, 1000), rel=1e-12),
        "learning_rate_now": pytest.approx(cosine(550, 3000), rel=1e-12),
    }


def test_a_schedule_that_does_not_follow_the_length_must_be_accepted_too() -> None:
    constant = ("schedule=constant", "schedule.min_learning_rate=1e-3")
    with pytest.raises(ConfigError, match="is 0.001 with both lengths"):
        check_length(config(1000, *constant), config(3000, *constant), step=550, tokens=550 * STEP_TOKENS)


@pytest.mark.parametrize("more", [(), ("train.accept_new_length=true",)])
@pytest.mark.parametrize("before", [1000, 400])  # 400: the record of a run that was shortened before this was refused
def test_a_length_below_the_step_reached_is_always_refused(before: int, more: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError, match="train.steps=400 is 400 steps, but mine has reached step 550.*at least 550"):
        check_length(config(before), config(400, *more), step=550, tokens=550 * STEP_TOKENS)


def test_the_same_length_in_tokens_is_no_change_and_one_of_other_tokens_names_them() -> None:
    def in_tokens(tokens: int) -> RunConfig:
        return config(1000, "train.steps=null", f"train.tokens={tokens}")

    at = {"step": 550, "tokens": 550 * STEP_TOKENS}
    assert check_length(config(1000), in_tokens(1000 * STEP_TOKENS - 5), **at) is None
    with pytest.raises(ConfigError, match="Restore train.tokens=8192000"):
        check_length(in_tokens(2000 * STEP_TOKENS), config(1000), **at)


def test_a_run_of_which_nothing_is_trained_may_change_its_length() -> None:
    change = check_length(config(1000), config(3000), step=0, tokens=0)
    assert change is not None and (change.steps_before, change.steps_now) == (1000, 3000)
    assert change.learning_rate_before == change.learning_rate_now == 0
    going_on = ("checkpoint.start_from=/published", "checkpoint.start_step=200")
    assert check_length(config(1000, *going_on), config(3000, *going_on), step=200, tokens=200 * STEP_TOKENS)


def test_an_acceptance_is_no_part_of_identity_or_hash_and_is_not_recorded(tmp_path: Path) -> None:
    accepted, plain = config(3000, "train.accept_new_length=true", f"run.dir={tmp_path}"), config(3000)
    plain = dataclasses.replace(plain, run=accepted.run)
    assert identity_hash(accepted) == identity_hash(plain) and config_hash(accepted) == config_hash(plain)
    record(accepted)
    assert load_yaml(tmp_path / "mine" / CONFIG_NAME) == plain


def test_claiming_a_run_that_goes_on_leaves_its_record_until_the_start_is_sound(tmp_path: Path) -> None:
    first = config(1000, f"run.dir={tmp_path}")
    path = claim(first, find_saves=list_checkpoints, warn=print) / CONFIG_NAME
    written = path.read_bytes()
    longer = config(3000, f"run.dir={tmp_path}", "checkpoint.keep=3")
    assert claim(longer, find_saves=list_checkpoints, warn=print) == path.parent and path.read_bytes() == written
    assert changed_settings(load_yaml(path), longer) == [
        "train.steps: 1000, now 3000",
        "checkpoint.keep: 2, now 3",
    ]
