import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from pretrain.track.jsonl import JsonlSink
from pretrain.track.sink import TrackError
from tests.support.synthetic_run import run_info

REPOSITORY = Path(__file__).parents[3]


def rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def opened(directory: Path, *, resume_step: int = 0) -> JsonlSink:
    sink = JsonlSink()
    sink.open(run_info(directory, resume_step=resume_step))
    return sink


def test_values_logged_for_the_last_step_are_merged_into_its_row(tmp_path: Path) -> None:
    sink = opened(tmp_path)
    sink.log({"train/loss": 3.5}, step=1, tokens=10)
    sink.log({"validation/a/loss": 3.0}, step=1, tokens=10)
    sink.log({"train/loss": 2.5}, step=2, tokens=20)
    sink.log({"train/loss": 2.0}, step=2, tokens=20)  # A replacement, shorter or longer, leaves no rest behind.
    sink.close()
    assert rows(tmp_path / "metrics.jsonl") == [
        {"step": 1, "tokens": 10, "train/loss": 3.5, "validation/a/loss": 3.0},
        {"step": 2, "tokens": 20, "train/loss": 2.0},
    ]


def test_a_shorter_replacement_leaves_no_rest_of_the_longer_row(tmp_path: Path) -> None:
    sink = opened(tmp_path)
    sink.log({"train/loss": 1.23456789}, step=1, tokens=10)
    sink.log({"train/loss": 1.0}, step=1, tokens=10)
    sink.close()
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 1, "tokens": 10, "train/loss": 1.0}\n'


def test_a_resume_drops_later_rows_and_the_torn_line_and_goes_on(tmp_path: Path) -> None:
    sink = opened(tmp_path)
    for step in range(6):
        sink.log({"train/loss": float(step)}, step=step, tokens=step * 10)
    sink.event("save", {}, step=4)
    sink.close()
    for name in ("metrics.jsonl", "events.jsonl"):
        with open(tmp_path / name, "a") as file:
            file.write('{"step": 6, "tok')
    sink = opened(tmp_path, resume_step=3)
    sink.log({"validation/a/loss": 9.0}, step=3, tokens=30)
    sink.log({"train/loss": 40.0}, step=4, tokens=40)
    sink.event("resume", {}, step=3)
    sink.close()
    found = rows(tmp_path / "metrics.jsonl")
    assert [row["step"] for row in found] == [0, 1, 2, 3, 4]
    assert found[3] == {"step": 3, "tokens": 30, "train/loss": 3.0, "validation/a/loss": 9.0}
    assert found[4]["train/loss"] == 40.0
    assert [row["kind"] for row in rows(tmp_path / "events.jsonl")] == ["save", "resume"]


def test_a_row_of_an_earlier_step_is_refused(tmp_path: Path) -> None:
    sink = opened(tmp_path)
    sink.log({"train/loss": 1.0}, step=5, tokens=50)
    with pytest.raises(AssertionError, match="step 4 is out of order"):
        sink.log({"train/loss": 1.0}, step=4, tokens=40)
    sink.close()


def test_nan_and_infinity_become_null_and_the_file_stays_strict_json(tmp_path: Path) -> None:
    sink = opened(tmp_path)
    sink.log({"train/loss": float("nan"), "train/grad_norm": float("inf")}, step=1, tokens=10)
    sink.event("fault", {"values": [float("nan"), 1.0], "path": Path("x")}, step=1)
    sink.close()

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    row = json.loads((tmp_path / "metrics.jsonl").read_text(), parse_constant=refuse)
    assert row["train/loss"] is None and row["train/grad_norm"] is None
    assert rows(tmp_path / "events.jsonl")[0]["values"] == [None, 1.0]


def test_damage_in_the_middle_names_the_line(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "tokens": 1}\n{"step": 2, \n{"step": 3, "tokens": 3}\n')
    with pytest.raises(TrackError, match=r"metrics\.jsonl, line 2"):
        opened(tmp_path)


def test_a_full_disk_stops_with_an_explained_error(tmp_path: Path) -> None:
    sink = opened(tmp_path)
    full = os.open("/dev/full", os.O_RDWR)
    os.dup2(full, sink._metrics._descriptor)
    os.close(full)
    with pytest.raises(TrackError, match="No space left on device"):
        sink.log({"train/loss": 1.0}, step=1, tokens=10)


def test_every_row_survives_kill_9_and_each_step_is_there_once(tmp_path: Path) -> None:
    script = (
        "import os, signal, sys\n"
        "from pathlib import Path\n"
        "from pretrain.track.jsonl import JsonlSink\n"
        "from pretrain.track.tracker import Tracker\n"
        "from tests.support.synthetic_run import run_info\n"
        "first, kill_after = int(sys.argv[2]), int(sys.argv[3])\n"
        "sink = JsonlSink(); sink.open(run_info(Path(sys.argv[1]), resume_step=first))\n"
        "tracker = Tracker(sink)\n"
        "for step in range(first + 1, 21):\n"
        "    tracker.log({'train/loss': 1.0 / step}, step=step, tokens=step)\n"
        "    tracker.log({'validation/a/loss': 1.0}, step=step, tokens=step)\n"
        "    tracker.commit()\n"
        "    if step == kill_after: os.kill(os.getpid(), signal.SIGKILL)\n"
    )

    def start(first: int, kill_after: int) -> int:
        return subprocess.run(
            [sys.executable, "-c", script, str(tmp_path), str(first), str(kill_after)], cwd=REPOSITORY
        ).returncode

    assert start(0, 8) == -signal.SIGKILL
    assert [row["step"] for row in rows(tmp_path / "metrics.jsonl")] == list(range(1, 9))
    assert start(5, 13) == -signal.SIGKILL
    assert start(13, 99) == 0
    found = rows(tmp_path / "metrics.jsonl")
    assert [row["step"] for row in found] == list(range(1, 21))
    assert all({"train/loss", "validation/a/loss"} <= row.keys() for row in found)
