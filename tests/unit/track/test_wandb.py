import subprocess
import sys
from pathlib import Path

import pytest

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
sink.event("save", {}, step=last)
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
    assert [row["_step"] for row in second] == [5, 6, 7, 8, 9]
    assert all(row["tokens"] == 100 * row["_step"] for row in first + second)


def test_scores_join_the_row_of_their_step(segments: list[Path]) -> None:
    last = history(segments[0])[-1]
    assert last["probe-knowledge/arc/acc"] == 0.25 and last["train/loss"] == pytest.approx(1 / 6)


def test_tokens_are_the_x_axis_of_every_chart(segments: list[Path]) -> None:
    metrics = [r.metric for r in records(segments[0]) if r.WhichOneof("record_type") == "metric"]
    assert any("*" in (metric.glob_name or metric.name) and metric.step_metric == "tokens" for metric in metrics)
