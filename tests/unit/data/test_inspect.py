"""What `python -m pretrain.data show` says of a step, against the batches that ranks read."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pretrain.config.load import to_yaml
from pretrain.config.run import RunConfig
from pretrain.data.__main__ import main
from pretrain.data.inspect import render, show_step
from pretrain.data.loader import BatchLoader
from pretrain.data.prepare import PreparedData, ensure_prepared
from pretrain.data.run_order import RunOrder, begin, sample_order, write_order
from pretrain.errors import ConfigError, DataError

WORLD_SIZE = 4


@pytest.fixture
def prepared(config: RunConfig) -> PreparedData:
    return ensure_prepared(config, run_root=Path(config.run.dir))


@pytest.fixture
def run(config: RunConfig, prepared: PreparedData, tmp_path: Path) -> Path:
    """The directory of a run of four processes, two of them data-parallel, as it is when the run has started."""
    config.parallel.tensor, config.data.skip = 2, ["20:29"]
    directory = tmp_path / "a_run"
    directory.mkdir()
    (directory / "config.yaml").write_text(to_yaml(config))
    write_order(directory, RunOrder(begin(config, prepared), str(prepared.directory), WORLD_SIZE, []))
    return directory


def read(config: RunConfig, prepared: PreparedData, *, rank: int, size: int) -> np.ndarray:
    streams = {name: source.train for name, source in prepared.sources.items()}
    loader = BatchLoader(
        sample_order(config, prepared),
        streams,
        batch_sizes=config.batch_sizes,
        micro_batch_size=config.train.micro_batch_size,
        dp_rank=rank,
        dp_size=size,
    )
    return loader.batch(16).tokens_MBT.reshape(-1, 33)


def test_a_step_shows_the_samples_it_trained_on(config: RunConfig, prepared: PreparedData, run: Path) -> None:
    rows = read(config, prepared, rank=0, size=1)
    shown = list(show_step(run, step=3))
    assert [s.sample for s in shown] == list(range(16, 24))
    assert [(s.rank, s.microbatch) for s in shown] == [(0, 0), (0, 0), (1, 0), (1, 0), (0, 1), (0, 1), (1, 1), (1, 1)]
    for one, row in zip(shown, rows, strict=True):
        assert one.text == prepared.tokenizer.decode(row)
        assert one.documents[0].start <= one.start < one.documents[0].stop
        assert one.documents[-1].start < one.start + 33 <= one.documents[-1].stop
        assert len(one.documents) == np.count_nonzero(row[:-1] == prepared.tokenizer.eos_id) + 1
        assert f"sample {one.sample}: {one.source}" in render(one)


@pytest.mark.parametrize("rank", range(WORLD_SIZE))
def test_a_process_shows_what_it_read_itself(config: RunConfig, prepared: PreparedData, run: Path, rank: int) -> None:
    rows = read(config, prepared, rank=rank // 2, size=2)
    assert [s.text for s in show_step(run, step=3, rank=rank)] == [prepared.tokenizer.decode(row) for row in rows]


def test_steps_and_ranks_that_are_none_are_named(run: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"--step 0 is not a step of .*1 to 10"):
        list(show_step(run, step=0))
    with pytest.raises(DataError, match=r"--rank 4 is not a rank of .*0 to 3"):
        list(show_step(run, step=1, rank=4))
    with pytest.raises(ConfigError, match="config.yaml cannot be read: No such file"):
        list(show_step(tmp_path / "nowhere", step=1))


def test_the_command_prints_a_batch(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", "--step", "2", str(run / "checkpoints")]) == 0  # the run of these checkpoints
    assert capsys.readouterr().out.count("sample ") == 8
    assert main(["show", str(run), "--step", "2", "--rank", "1", "--characters", "5"]) == 0
    out = capsys.readouterr().out
    assert out.count("sample ") == 4 and "…'" in out
    assert main(["show", str(run), "--step", "11"]) == 1
    assert "--step 11 is not a step" in capsys.readouterr().err


def test_an_unknown_option_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["show", "somewhere", "--step", "1", "--stepp", "3"])
    assert "--stepp" in capsys.readouterr().err
