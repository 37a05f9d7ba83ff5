from pathlib import Path

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from pretrain.track.tensorboard import TensorboardSink
from tests.support.synthetic_run import run_info


def write(directory: Path, steps: range, *, resume_step: int = 0, offset: float = 0.0) -> None:
    sink = TensorboardSink()
    sink.open(run_info(directory, resume_step=resume_step))
    for step in steps:
        sink.log({"train/loss": step + offset}, step=step, tokens=step * 100)
    sink.event("save", {}, step=steps[-1])
    sink.close()
    sink.close()


def scalars(directory: Path, tag: str) -> list[tuple[int, float]]:
    events = EventAccumulator(str(directory / "tensorboard"), size_guidance={"scalars": 0}).Reload()
    return [(scalar.step, scalar.value) for scalar in events.Scalars(tag)]


def test_tensorboard_reads_back_every_scalar(tmp_path: Path) -> None:
    write(tmp_path, range(1, 11))
    assert scalars(tmp_path, "train/loss") == [(step, float(step)) for step in range(1, 11)]
    assert scalars(tmp_path, "tokens")[-1] == (10, 1000.0)


def test_a_resumed_run_replaces_the_steps_it_repeats(tmp_path: Path) -> None:
    write(tmp_path, range(1, 11))
    write(tmp_path, range(6, 13), resume_step=5, offset=0.5)
    expected = [(step, float(step)) for step in range(1, 6)] + [(step, step + 0.5) for step in range(6, 13)]
    assert scalars(tmp_path, "train/loss") == expected
