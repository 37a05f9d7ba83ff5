import subprocess
import sys
from pathlib import Path

import pytest

from pretrain.track.wandb import _run_id
from tests.support.wandb_file import history, records

REPOSITORY = Path(__file__).parents[3]
SCRIPT = """
import sys
from pathlib import Path
from pretrain.config.track import WandbConfig
from pretrain.track.wandb import WandbSink
from tests.support.synthetic_run import run_info
first, last = int(sys.argv[2]), int(sys.argv[3])
sink = WandbSink(WandbConfig(project="fine", tags=["test"]))
sink.open(run_info(Path(sys.argv[1]), resume_step=first - 1))
for step in range(first, last + 1):
    sink.log({"train/loss": 1.0 / step}, step=step, tokens=step * 100)
sink.log({"probe-knowledge/arc/acc": 0.25}, step=last, tokens=last * 100)
if first > 1:  # scores made beside training: of earlier steps, two of them at once
    sink.log({"probe-knowledge/arc/acc": 0.1}, step=2, tokens=200)
    sink.log({"train/loss": 0.5}, step=last + 1, tokens=(last + 1) * 100)
    sink.log({"probe-knowledge/arc/acc": 0.2}, step=3, tokens=300)
    sink.log({"probe-knowledge/arc/acc": 0.3}, step=4, tokens=400)
sink.event("save", {}, step=last)
sink.event("length_changed", {"warning": "The run is longer now."}, step=last)
sink.close()
sink.close()
"""


@pytest.fixture(scope="module")
def segments(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The .wandb files of a run and its continuation, written by two processes without any W&B settings."""
    directory = tmp_path_factory.mktemp("wandb") / "demo"
    directory.mkdir()
    home = tmp_path_factory.mktemp("home")
    environment = {"PYTHONPATH": str(REPOSITORY), "HOME": str(home), "PATH": "/usr/bin:/bin"}
    for first, last in ((1, 6), (5, 9)):
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT, str(directory), str(first), str(last)],
            env=environment, capture_output=True, text=True, check=True,
        )  # fmt: skip
        assert done.stdout == "" and done.stderr == ""
    return sorted((directory / "wandb").glob("offline-run-*/*.wandb"))


def test_both_processes_write_to_the_same_run(segments: list[Path]) -> None:
    assert len(segments) == 2
    runs = [next(r.run for r in records(path) if r.WhichOneof("record_type") == "run") for path in segments]
    assert runs[0].run_id == runs[1].run_id == (segments[0].parents[1] / "run_id").read_text().strip()
    assert runs[0].project == "fine" and runs[0].display_name == "demo" and list(runs[0].tags) == ["test"]
    config = {item.key: item.value_json for item in runs[0].config.update}
    assert '"seed": 0' in config["run"].replace('":0', '": 0') and "0123456789abcdef" in config["config_hash"]


def test_rows_carry_the_training_step_and_tokens(segments: list[Path]) -> None:
    first, second = (history(path) for path in segments)
    assert [row["_step"] for row in first] == [1, 2, 3, 4, 5, 6]
    assert [row["_step"] for row in second] == [5, 6, 7, 8, 9, 10, 11, 12]
    assert all(row["tokens"] == 100 * row["_step"] for row in first + second if "train/loss" in row)


def test_a_warning_is_an_alert(segments: list[Path]) -> None:
    alerts = [r.alert for path in segments for r in records(path) if r.WhichOneof("record_type") == "alert"]
    assert [(alert.title, alert.text) for alert in alerts] == [
        ("length changed at step 6", "The run is longer now."),
        ("length changed at step 9", "The run is longer now."),
    ]


def test_scores_join_the_row_of_their_step(segments: list[Path]) -> None:
    last = history(segments[0])[-1]
    assert last["probe-knowledge/arc/acc"] == 0.25 and last["train/loss"] == pytest.approx(1 / 6)


def test_late_scores_keep_the_tokens_of_their_checkpoint_and_change_no_other_row(segments: list[Path]) -> None:
    rows = history(segments[1])
    scores = [
        (row["_step"], row["probe_tokens"], row["probe-knowledge/arc/acc"]) for row in rows if "probe_tokens" in row
    ]
    assert scores == [(9, 900, 0.25), (10, 200, 0.1), (11, 300, 0.2), (12, 400, 0.3)]
    assert [row["_step"] for row in rows if "train/loss" in row] == [5, 6, 7, 8, 9, 10]


def test_scores_have_the_tokens_of_their_checkpoint_as_x_axis(segments: list[Path]) -> None:
    for path in segments:
        metrics = [r.metric for r in records(path) if r.WhichOneof("record_type") == "metric"]
        assert [m.step_metric for m in metrics if m.name.startswith("probe-")] == ["probe_tokens"]


def test_tokens_are_the_x_axis_of_every_chart(segments: list[Path]) -> None:
    metrics = [r.metric for r in records(segments[0]) if r.WhichOneof("record_type") == "metric"]
    assert any("*" in (metric.glob_name or metric.name) and metric.step_metric == "tokens" for metric in metrics)


@pytest.mark.parametrize("left", ["", "\0" * 9])
def test_an_id_that_a_crash_emptied_is_made_anew_and_then_kept(left: str, tmp_path: Path) -> None:
    (tmp_path / "run_id").write_text(left)
    made = _run_id(tmp_path)
    assert len(made) == 8 and made == _run_id(tmp_path)
