"""Rules on values: every problem of a configuration at once, with the arithmetic and what would fit."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import yaml

from pretrain.config.checks import check, find_problems
from pretrain.config.load import compose, from_plain, to_plain
from pretrain.config.run import RunConfig
from pretrain.errors import ConfigError

SIZES = {  # fixed here, so that the arithmetic in the messages does not move when the demo is tuned
    "train": {"steps": 240, "micro_batch_size": 4, "global_batch_size": 16, "sequence_length": 256},
    "model": {"num_layers": 6, "hidden_size": 192, "num_attention_heads": 6, "num_query_groups": None},
    "schedule": {"learning_rate": 2e-3, "min_learning_rate": 2e-4, "warmup": "20 steps"},
}
demo_values = functools.cache(lambda: to_plain(compose(["experiment=demo"])))


def demo(*overrides: str) -> RunConfig:
    """The demo with changed values, without composing again, which is what takes time."""
    values: dict[str, Any] = yaml.safe_load(yaml.safe_dump(demo_values()))
    for section, sizes in SIZES.items():
        values[section] |= sizes
    for override in overrides:
        key, _, text = override.partition("=")
        *sections, last = key.split(".")
        at = values
        for section in sections:
            at = at.setdefault(section, {})
        at[last] = yaml.safe_load(text)
    return from_plain(values)


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["train.steps=0"], "train.steps=0 is out of range: it must be at least 1."),
        (["train.sequence_length=1"], "between 2 and 1048576"),
        (["optimizer.beta2=1.0"], "optimizer.beta2=1.0 is out of range"),
        (["schedule.learning_rate=.nan"], "schedule.learning_rate=nan"),
        (["schedule.learning_rate=.inf"], "schedule.learning_rate=inf"),
        (["model.norm_epsilon=0"], "above 0"),
        (["schedule.kind=cosin"], "Did you mean cosine"),
        (["engine.name=megatorn"], "Did you mean megatron"),
        (["precision.compute=fp16"], "Allowed: bf16, fp32"),
        (["checkpoint.export=everything"], "Allowed: none, last, all"),
        (["schedule.warmup=20 days"], "schedule.warmup='20 days' is not a duration"),
        (["checkpoint.every=0 steps"], "longer than nothing"),
        (["track.dynamics.every=0 steps"], "track.dynamics.every='0 steps' must be longer than nothing"),
        (["track.dynamics.every=often"], "track.dynamics.every='often' is not a duration"),
        (["checkpoint.early=[0,-1]"], "steps of 0 or more"),
        (["checkpoint.keep=0"], "checkpoint.keep=0"),
        (["run.name=a/b"], "cannot name a folder"),
        (["run.name=.hidden"], "cannot name a folder"),
        (["train.tokens=1000000"], "got both (train.steps=240, train.tokens=1000000)"),
        (["train.steps=null"], "got neither"),
        (["model.num_attention_heads=5"], "192 % 5 = 2"),
        (["model.num_attention_heads=64"], "192 / 64 = 3 is odd"),
        (["model.num_query_groups=4"], "6 % 4 = 2. Use one of 1, 2, 3, 6, or null."),
        (["parallel.tensor=4"], "must divide model.num_attention_heads = 6; 6 % 4 = 2"),
        (["parallel.pipeline=4"], "6 % 4 = 2. Products that fit: 1, 2, 3, 6."),
        (["parallel.virtual_pipeline=2"], "needs parallel.pipeline of at least 2"),
        (["parallel.sequence=true"], "needs parallel.tensor > 1"),
        (["parallel.context=3"], "multiple of 6 (2 x parallel.context=3); 256 % 6 = 4. Nearest: 252 and 258."),
        (["schedule.min_learning_rate=1"], "above schedule.learning_rate=0.002, the peak"),
        (["train.steps=10"], "20 steps, longer than the run of 10 steps"),
        (
            [
                "train.steps=null",
                "train.tokens=983040",
                "checkpoint.start_step=240",
                "checkpoint.start_from=/published",
            ],
            "checkpoint.start_step=240 leaves nothing to train: the run is 240 steps long.",
        ),
        (["schedule.decay=10 steps"], "before the warmup's end at step 20"),
        (["train.micro_batch_size=3"], "16 % 3 = 1. Nearest values of train.global_batch_size: 15 and 18"),
        (["schedule.kind=wsd", "schedule.decay_length=0%"], "schedule.decay_length='0%' is no share"),
        (["schedule.kind=wsd", "schedule.decay_length=5"], "Or write a share of the run: '20%'."),
        (["schedule.kind=wsd", "schedule.decay_shape=sqrt"], "Did you mean 1-sqrt? Allowed: linear, cosine,"),
        (
            ["schedule.kind=wsd", "schedule.decay_shape=exponential", "schedule.min_learning_rate=0"],
            "falls by equal factors",
        ),
        (
            ["schedule.kind=wsd", "schedule.decay_length=221 steps"],
            "begins at token 77824, before the end of schedule.warmup='20 steps' at token 81920. Use at most '901120",
        ),
        (["schedule.kind=wsd", "schedule.decay_length=300 steps"], "begins at token 0, before the end"),
        (["schedule.kind=multi_step", "schedule.step_shares=[0.5]"], "have 1 and 2 entries"),
        (["schedule.kind=multi_step", "schedule.step_shares=[0.9,0.8]"], "must rise"),
        (["schedule.kind=multi_step", "schedule.step_shares=[0.8,1.0]"], "between 0 and 1"),
        (["schedule.kind=multi_step", "schedule.step_factors=[0.1,0.316]"], "must fall"),
        (["schedule.kind=multi_step", "schedule.step_shares=[0.05,0.5]"], "begin at token 49152 of 983040"),
        (["optimizer.z_loss=-1"], "optimizer.z_loss=-1.0 is out of range"),
        (["train.batch_ramp=[{until: 9 steps, global_batch_size: 0}]"], "batch_ramp[0].global_batch_size=0"),
        (["train.batch_ramp=[{until: x, global_batch_size: 4}]"], "train.batch_ramp[0].until='x' is not a duration"),
        (["train.batch_ramp=[{until: 0 steps, global_batch_size: 4}]"], "is not after the stage's begin at step 0"),
        (["data.sources={}"], "data.sources is empty"),
        (["data.sources.wbe.weight=2"], "data.sources.wbe has no paths. Did you mean web?"),
        (["data.sources.web.weight=-1"], "data.sources.web.weight=-1.0 must be 0 or more"),
        (["tokenizer.accept_loss=[tab]"], "tokenizer.accept_loss: 'tab' is no kind of loss. Did you mean tabs?"),
        (["tokenizer.path=/nowhere/tokenizer.model"], "tokenizer.path=/nowhere/tokenizer.model: no such file"),
        (["track.jsonl.enabled=false"], "cannot be switched off"),
        (["engine.distributed_optimizer=false"], "Set engine.overlap_param_gather=false too."),
    ],
)
def test_one_wrong_value_gives_one_problem_that_teaches(overrides: list[str], expected: str) -> None:
    problems = list(find_problems(demo(*overrides)))
    assert len(problems) == 1, problems
    assert expected in problems[0]


def test_all_problems_come_in_one_error() -> None:
    config = demo("train.steps=10", "track.jsonl.enabled=false", "parallel.tensor=5", "model.num_query_groups=4")
    with pytest.raises(ConfigError) as caught:
        check(config)
    # tensor divides neither heads, groups, feed-forward nor vocabulary
    assert len(caught.value.problems) == 7
    assert caught.value.exit_code == 2


def test_sources_that_all_weigh_nothing_are_refused() -> None:
    config = demo('data.sources={"a": {"paths": ["x"], "weight": 0}}')
    assert any("Every source has weight 0 (a)" in problem for problem in find_problems(config))


def test_a_source_of_weight_zero_beside_others_is_fine() -> None:
    check(demo("data.sources.web.weight=0"))


def test_the_world_size_is_only_judged_when_it_is_known() -> None:
    config = demo()
    check(config, None)
    with pytest.raises(ConfigError, match=r"4 x 3 = 12; 16 % 12 = 4\. Nearest .*: 12 and 24\."):
        check(config, 3)


RAMP = "train.batch_ramp=[{until: 10 steps, global_batch_size: 2}, {until: 40k tokens, global_batch_size: 6}]"


def test_every_batch_of_a_ramp_must_fit_the_world() -> None:
    check(demo(RAMP, "train.micro_batch_size=1"), 2)
    with pytest.raises(ConfigError) as caught:
        check(demo(RAMP, "train.micro_batch_size=4"), 2)
    assert [problem.split(" ")[0] for problem in caught.value.problems] == [
        "train.batch_ramp[0].global_batch_size=2",
        "train.batch_ramp[1].global_batch_size=6",
    ]
    assert "6 % 8 = 6. Nearest values of train.batch_ramp[1].global_batch_size: 8" in caught.value.problems[1]


def test_a_ramp_makes_a_run_of_as_many_tokens_longer() -> None:
    without = demo("train.steps=null", "train.tokens=983040")
    config = demo("train.steps=null", "train.tokens=983040", RAMP)
    assert config.total_steps > without.total_steps
    assert config.total_tokens - 983040 in range(config.batch_sizes.full_step_tokens)


def test_warmup_in_tokens_is_compared_in_steps() -> None:
    check(demo("schedule.warmup=81920 tokens"))
    with pytest.raises(ConfigError, match="is 245 steps"):
        check(demo("schedule.warmup=1M tokens"))
