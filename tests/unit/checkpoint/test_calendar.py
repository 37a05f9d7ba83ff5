import pytest

from pretrain.batch_size import BatchSizes
from pretrain.checkpoint.calendar import save_steps
from pretrain.config.checkpoint import CheckpointConfig
from pretrain.errors import ConfigError
from pretrain.units import Duration

HUNDRED = BatchSizes.constant(10, sequence_length=10)
RAMP = BatchSizes.ramp(
    [(Duration(700, "tokens"), 1), (Duration(5, "steps"), 2)], global_batch_size=4, sequence_length=200
)


def _steps(total, *, batch_sizes=HUNDRED, **fields):
    return save_steps(CheckpointConfig(**fields), total_steps=total, batch_sizes=batch_sizes).steps()


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
    short, long = (save_steps(CheckpointConfig(), total_steps=n, batch_sizes=HUNDRED) for n in (5000, 9000))
    assert [step for step in range(5001) if short.is_due(step)] == short.steps()
    assert short.steps() == [step for step in long.steps() if step <= 5000]


@pytest.mark.parametrize("size", [1, 199, 200, 201, 400, 1000, 3000, 10**6])
def test_token_multiples_follow_a_batch_ramp(size):
    consumed = [0, 200, 400, 600, 800, 1200, 2000, 2800, 3600, 4400]
    reached = [step for step in range(1, 10) if consumed[step] // size > consumed[step - 1] // size]
    assert _steps(9, batch_sizes=RAMP, early=[], every=f"{size} tokens") == sorted({*reached, 9})


@pytest.mark.parametrize("fields", [{"every": "0 steps"}, {"every": "often"}, {"early": [-1]}])
def test_a_calendar_that_makes_no_sense_is_refused(fields):
    with pytest.raises(ConfigError, match="checkpoint"):
        _steps(10, **fields)
