"""Steps, samples and tokens of a ramp against a loop that counts them one step after another."""

from __future__ import annotations

import pytest

from pretrain.batch_size import BatchSizes
from pretrain.config.run import BatchStage, RunConfig, TrainSection
from pretrain.errors import ConfigError
from pretrain.units import Duration

LENGTH = 10
RAMP = BatchSizes.ramp(
    [(Duration(200, "tokens"), 3), (Duration(11, "steps"), 5), (Duration(900, "tokens"), 7)],
    global_batch_size=8,
    sequence_length=LENGTH,
)


def counted(num_steps: int) -> list[tuple[int, int]]:
    """(samples before the step, its batch size), by the definition: a step belongs to where it begins."""
    steps, samples = [], 0
    for step in range(num_steps):
        tokens = samples * LENGTH
        size = 3 if tokens < 200 else 5 if step < 11 else 7 if tokens < 900 else 8
        steps.append((samples, size))
        samples += size
    return steps


def test_a_ramp_is_what_counting_gives() -> None:
    for step, (samples, size) in enumerate(counted(60)):
        assert RAMP.samples(step) == samples
        assert RAMP.tokens(step) == samples * LENGTH
        assert RAMP.at_sample(samples) == size
    assert {size for _, size in counted(60)} == {3, 5, 7, 8}


def test_steps_are_the_fewest_that_consume_so_many_tokens() -> None:
    ends = [(samples + size) * LENGTH for samples, size in counted(60)]
    for tokens in range(1, 2000):
        assert RAMP.steps(tokens) == next(step for step, end in enumerate(ends, 1) if end >= tokens)
    assert RAMP.steps(0) == 0


def test_durations_count_from_the_start_of_the_run() -> None:
    assert RAMP.steps_of(Duration(211, "tokens")) == 8 == RAMP.steps_of(Duration(8, "steps"))
    assert RAMP.tokens_of(Duration(8, "steps")) == 260
    assert RAMP.tokens_of(Duration(7, "tokens")) == 7


def test_a_constant_batch_is_multiplication() -> None:
    sizes = BatchSizes.constant(10, sequence_length=10)
    assert BatchSizes.ramp([], global_batch_size=10, sequence_length=10) == sizes
    assert [sizes.steps(tokens) for tokens in (0, 1, 1000, 1001)] == [0, 1, 10, 11]
    assert (sizes.tokens(7), sizes.samples(7), sizes.at_sample(12345)) == (700, 70, 10)
    assert sizes.full_step_tokens == 100


@pytest.mark.parametrize("every", [Duration(4, "steps"), Duration(7, "tokens"), Duration(70, "tokens")])
def test_a_multiple_is_held_by_the_step_that_reaches_it(every: Duration) -> None:
    for step, (samples, size) in enumerate(counted(40), 1):
        low, high = (step - 1, step) if every.unit == "steps" else (samples * LENGTH, (samples + size) * LENGTH)
        assert RAMP.holds_multiple(every, step=step) == any(at % every.count == 0 for at in range(low + 1, high + 1))


def test_stages_that_end_before_they_begin_are_all_named() -> None:
    stages = [(Duration(100, "tokens"), 3), (Duration(100, "tokens"), 4), (Duration(4, "steps"), 0)]
    with pytest.raises(ConfigError) as caught:
        BatchSizes.ramp([*stages, (Duration(2, "steps"), 5)], global_batch_size=8, sequence_length=LENGTH)
    problems = caught.value.problems
    assert len(problems) == 3
    assert "train.batch_ramp[1].until='100 tokens' is not after the stage's begin at step 4, token 120" in problems[0]
    assert "train.batch_ramp[2].global_batch_size=0" in problems[1]
    assert "train.batch_ramp[3].until='2 steps'" in problems[2]


def test_the_length_of_a_run_follows_its_ramp() -> None:
    stages = [BatchStage(until="200 tokens", global_batch_size=3), BatchStage(until="11 steps", global_batch_size=5)]
    train = TrainSection(tokens=500, global_batch_size=8, sequence_length=LENGTH, batch_ramp=stages)
    config = RunConfig(train=train)
    assert (config.total_steps, config.total_tokens) == (13, 570)  # 7 x 30 + 4 x 50 + 2 x 80; one step less is 490
