import math

import pytest

from pretrain.checkpoint.calendar import check_names, save_steps
from pretrain.config.checkpoint import CheckpointConfig
from pretrain.config.load import compose
from pretrain.config.run import BatchStage, RunConfig
from pretrain.errors import ConfigError

RAMP = [
    BatchStage(until="700 tokens", global_batch_size=1),
    BatchStage(until="5 steps", global_batch_size=2),
]


def _calendar(total, *, ramp=(), chunk_ends=(), save_chunk_ends=True, schedule=None, **fields):
    """A hundred tokens a step; with `ramp`, batches of 1, 2 and 4 sequences of 200."""
    config = RunConfig(checkpoint=CheckpointConfig(chunk_ends=save_chunk_ends, **fields))
    config.train.steps, config.train.batch_ramp = total, list(ramp)
    config.train.global_batch_size, config.train.sequence_length = (4, 200) if ramp else (10, 10)
    for key, value in (schedule or {}).items():
        setattr(config.schedule, key, value)
    return save_steps(config, chunk_ends=chunk_ends)


def _steps(total, **fields):
    return _calendar(total, **fields).steps()


def test_early_steps_multiples_and_the_end_are_saved():
    assert _steps(25, early=[0, 1, 2, 4, 64], every="10 steps") == [0, 1, 2, 4, 10, 20, 25]


def test_the_default_calendar_is_log_spaced_then_regular():
    early = [0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 512]
    assert _steps(3500) == [*early, 1000, 2000, 3000, 3500]


@pytest.mark.parametrize(
    ("every", "total"), [("250 tokens", 40), ("1000 tokens", 33), ("100 tokens", 5), ("7 tokens", 9)]
)
def test_token_multiples_are_saved_after_the_step_that_reaches_them(every, total):
    size = int(every.split()[0])
    reached = [step for step in range(1, total + 1) if step * 100 // size > (step - 1) * 100 // size]
    assert _steps(total, early=[], every=every) == sorted({*reached, total})


def test_is_due_agrees_with_the_list_and_a_longer_run_keeps_the_calendar():
    short, long = (_calendar(total) for total in (5000, 9000))
    assert [step for step in range(5001) if short.is_due(step)] == short.steps()
    assert short.steps() == [step for step in long.steps() if step <= 5000]


@pytest.mark.parametrize("size", [1, 199, 200, 201, 400, 1000, 3000, 10**6])
def test_token_multiples_follow_a_batch_ramp(size):
    consumed = [0, 200, 400, 600, 800, 1200, 2000, 2800, 3600, 4400]
    reached = [step for step in range(1, 10) if consumed[step] // size > consumed[step - 1] // size]
    assert _steps(9, ramp=RAMP, early=[], every=f"{size} tokens") == sorted({*reached, 9})


@pytest.mark.parametrize(
    "fields", [{"every": "0 steps"}, {"every": "often"}, {"early": [-1]}, {"per_decade": 0}, {"milestones": "0 tokens"}]
)
def test_a_calendar_that_makes_no_sense_is_refused(fields):
    with pytest.raises(ConfigError, match="checkpoint"):
        _steps(10, **fields)


def test_the_calendar_of_pythia_has_its_154_checkpoints():
    config = compose(["checkpoint=pythia", "train.steps=143000", "train.global_batch_size=1024"])
    steps = save_steps(config).steps()
    assert len(steps) == 154 and steps[:12] == [0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1000]
    assert config.batch_sizes.tokens(steps[-1]) == 143_000 * 2_097_152


@pytest.mark.parametrize("per_decade", [1, 3, 10])
def test_log_spaced_saves_are_the_powers_of_ten_between(per_decade):
    total = 100_000
    expected = {math.ceil(round(10 ** (k / per_decade), 9)) for k in range(5 * per_decade + 1)}
    assert _steps(total, early=[], every=None, per_decade=per_decade) == sorted(expected)


def test_log_spaced_saves_are_spaced_in_tokens_where_batches_grow():
    consumed = [0, 200, 400, 600, 800, 1200, 2000, 2800, 3600, 4400]
    wanted = [200 * 10 ** (k / 5) for k in range(7)]  # the last is 3170 tokens, the end 4400
    expected = {next(step for step, tokens in enumerate(consumed) if tokens >= point) for point in wanted}
    assert _steps(9, ramp=RAMP, early=[], every=None, per_decade=5) == sorted(expected | {9})


def test_chunk_ends_are_saved_unless_told_otherwise_and_are_numbered():
    calendar = _calendar(20, early=[0, 1], every=None, chunk_ends=[7, 14, 21])
    assert calendar.steps() == [0, 1, 7, 14, 20]
    assert [calendar.index(step) for step in calendar.steps()] == [None, None, 0, 1, None]
    assert _steps(20, early=[0], every=None, chunk_ends=[7, 14], save_chunk_ends=False) == [0, 20]


def test_multiples_of_every_are_numbered_as_ambers_checkpoints():
    calendar = _calendar(762 * 360, early=[0], every="762 steps")
    assert [calendar.index(step) for step in (0, 761, 762, 1524, 762 * 360)] == [None, None, 0, 1, 359]


def test_milestones_keep_their_state_where_they_are_saved():
    calendar = _calendar(100, early=[0, 5], every="10 steps", milestones="25 steps")
    assert [step for step in calendar.steps() if calendar.keeps_state(step)] == [50, 100]


def test_the_step_before_a_decay_is_saved_and_keeps_its_state():
    schedule = {"kind": "wsd", "warmup": "2 steps", "decay_length": "25%"}
    calendar = _calendar(40, early=[], every=None, schedule=schedule)
    assert calendar.steps() == [30, 40] and calendar.keeps_state(30) and not calendar.keeps_state(40)
    assert _steps(40, early=[], every=None, schedule=schedule, before_decay=False) == [40]
    # 29.5 steps: the update that begins at token 2,900 still has the peak, the next one does not.
    assert _steps(40, early=[], every=None, schedule=schedule | {"decay_length": "1050 tokens"}) == [30, 40]
    assert _steps(40, early=[], every=None, schedule={"kind": "cosine"}) == [40]


def test_names_that_two_saves_would_share_are_refused_before_the_first():
    config = RunConfig(checkpoint=CheckpointConfig(early=[0, 1], every="10 steps", export="all"))
    config.train.steps, config.train.global_batch_size, config.train.sequence_length = 40, 10, 10
    config.checkpoint.export_name = "{run}-{billions}B"
    with pytest.raises(ConfigError, match=r"steps 0 and 1 the same name, run-0\.0B\. Use \{step\}"):
        check_names(config, save_steps(config))
    config.checkpoint.export = "last"
    check_names(config, save_steps(config))


@pytest.mark.parametrize("experiment", ["amber_7b", "amber_7b_fineline", "openllama_7b_fineline", "k2_65b", "demo"])
def test_recipes_name_every_save_differently(experiment):
    config = compose([f"experiment={experiment}"])
    check_names(config, save_steps(config))
