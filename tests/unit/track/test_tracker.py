import json
from pathlib import Path

import pytest

from pretrain.config.track import ConsoleConfig, TensorboardConfig, TrackConfig
from pretrain.track.jsonl import JsonlSink
from pretrain.track.tracker import Tracker, build_tracker
from tests.support.synthetic_run import run_info


class Recorder:
    """A real view that keeps what it is given; fails on request."""

    def __init__(self, *, fails_at: int | None = None) -> None:
        self.rows: list[tuple[int, dict[str, float]]] = []
        self.kinds: list[str] = []
        self.closed = 0
        self.fails_at = fails_at

    def open(self, info) -> None:
        pass

    def log(self, values, *, step, tokens) -> None:
        if step == self.fails_at:
            raise ConnectionError("server went away")
        self.rows.append((step, dict(values)))

    def event(self, kind, fields, *, step) -> None:
        self.kinds.append(kind)

    def close(self) -> None:
        self.closed += 1


def tracked(directory: Path, *views: Recorder) -> Tracker:
    record = JsonlSink()
    record.open(run_info(directory))
    return Tracker(record, views)


def rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_values_of_one_step_make_one_row_and_a_later_step_commits_it(tmp_path: Path) -> None:
    view = Recorder()
    tracker = tracked(tmp_path, view)
    tracker.log({"validation/a/loss": 9.0}, step=0, tokens=0)
    tracker.log({"train/loss": 3.0}, step=1, tokens=10)
    tracker.log({"validation/a/loss": 2.9}, step=1, tokens=10)
    assert [row["step"] for row in rows(tmp_path / "metrics.jsonl")] == [0]
    tracker.commit()
    assert view.rows == [(0, {"validation/a/loss": 9.0}), (1, {"train/loss": 3.0, "validation/a/loss": 2.9})]
    tracker.close()
    assert [row["step"] for row in rows(tmp_path / "metrics.jsonl")] == [0, 1]


def test_values_after_the_commit_join_the_row_of_their_step(tmp_path: Path) -> None:
    tracker = tracked(tmp_path)
    tracker.log({"train/loss": 3.0}, step=1, tokens=10)
    tracker.commit(durable=True)
    tracker.log({"time/saving_seconds": 0.5}, step=1, tokens=10)
    tracker.close()
    assert rows(tmp_path / "metrics.jsonl") == [
        {"step": 1, "tokens": 10, "train/loss": 3.0, "time/saving_seconds": 0.5}
    ]


def test_probe_values_reach_the_views_but_not_the_metrics(tmp_path: Path) -> None:
    view = Recorder()
    tracker = tracked(tmp_path, view)
    tracker.log({"train/loss": 3.0}, step=1, tokens=10)
    tracker.commit()
    tracker.log_views({"probe-knowledge/arc/acc": 0.3}, step=1, tokens=10)
    tracker.close()
    assert view.rows[-1] == (1, {"probe-knowledge/arc/acc": 0.3})
    assert "probe-knowledge/arc/acc" not in rows(tmp_path / "metrics.jsonl")[0]


def test_a_failing_view_is_switched_off_once_and_the_rest_goes_on(tmp_path: Path, capsys) -> None:
    broken, sound = Recorder(fails_at=2), Recorder()
    tracker = tracked(tmp_path, broken, sound)
    for step in range(1, 5):
        tracker.log({"train/loss": 1.0}, step=step, tokens=step)
    tracker.close()
    assert [step for step, _ in broken.rows] == [1]
    assert [step for step, _ in sound.rows] == [1, 2, 3, 4]
    assert broken.closed == sound.closed == 1
    warning = capsys.readouterr().err
    assert warning.count("switched off") == 1 and "ConnectionError: server went away" in warning
    (event,) = rows(tmp_path / "events.jsonl")
    assert event["kind"] == "sink_disabled" and "server went away" in event["cause"]
    assert sound.kinds == ["sink_disabled"]
    assert len(rows(tmp_path / "metrics.jsonl")) == 4


def test_a_view_that_cannot_be_opened_is_left_out(tmp_path: Path, capsys) -> None:
    (tmp_path / "tensorboard").write_text("a file where the folder should be")
    config = TrackConfig(tensorboard=TensorboardConfig(enabled=True))
    with build_tracker(config, run_info(tmp_path)) as tracker:
        tracker.log({"train/loss": 1.0}, step=1, tokens=1)
    assert "the tensorboard view is switched off: FileExistsError" in capsys.readouterr().err
    assert len(rows(tmp_path / "metrics.jsonl")) == 1


def test_a_warning_is_an_event_and_one_line_on_stderr_of_rank_0(tmp_path: Path, capsys) -> None:
    view = Recorder()
    with tracked(tmp_path, view) as tracker:
        tracker.warn("length_changed", "The run is longer now.", step=7, steps_now=9)
    assert capsys.readouterr().err == "warning: The run is longer now.\n"
    (event,) = rows(tmp_path / "events.jsonl")
    assert (event["kind"], event["step"], event["steps_now"]) == ("length_changed", 7, 9)
    assert event["warning"] == "The run is longer now." and view.kinds == ["length_changed"]
    build_tracker(TrackConfig(), run_info(tmp_path), rank=1).warn("length_changed", "The run is longer now.", step=7)
    assert capsys.readouterr().err == ""


def test_other_ranks_track_nothing(tmp_path: Path) -> None:
    config = TrackConfig(console=ConsoleConfig(enabled=True))
    with build_tracker(config, run_info(tmp_path), rank=1) as tracker:
        tracker.log({"train/loss": 1.0}, step=1, tokens=1)
        tracker.event("save")
    assert list(tmp_path.iterdir()) == []


def test_a_wrong_duration_is_explained_before_anything_is_written(tmp_path: Path) -> None:
    config = TrackConfig(console=ConsoleConfig(enabled=True, every="ten"))
    with pytest.raises(Exception, match=r"track\.console\.every='ten' is not a duration"):
        build_tracker(config, run_info(tmp_path))
    assert list(tmp_path.iterdir()) == []
