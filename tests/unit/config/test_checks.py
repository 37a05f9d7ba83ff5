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

demo_values = functools.cache(lambda: to_plain(compose(["experiment=demo"])))


def demo(*overrides: str) -> RunConfig:
    """The demo with changed values, without composing again, which is what takes time."""
    values: dict[str, Any] = yaml.safe_load(yaml.safe_dump(demo_values()))
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
        (["schedule.warmup=20"], "schedule.warmup='20' is not a duration"),
        (["checkpoint.every=0 steps"], "longer than nothing"),
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
        (["schedule.decay=10 steps"], "before the warmup's end at step 20"),
        (["train.micro_batch_size=3"], "16 % 3 = 1. Nearest values of train.global_batch_size: 15 and 18"),
        (["data.sources={}"], "data.sources is empty"),
        (["data.sources.wbe.weight=2"], "data.sources.wbe has no paths. Did you mean web?"),
        (["data.sources.web.weight=-1"], "data.sources.web.weight=-1.0 must be 0 or more"),
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


def test_warmup_in_tokens_is_compared_in_steps() -> None:
    check(demo("schedule.warmup=81920 tokens"))
    with pytest.raises(ConfigError, match="is 245 steps"):
        check(demo("schedule.warmup=1M tokens"))
