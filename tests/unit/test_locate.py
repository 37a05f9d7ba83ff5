"""A run may be named by its checkpoints, and its checkpoints by the run, in every command."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from pretrain.checkpoint.__main__ import main as checkpoint
from pretrain.checkpoint.manifest import Manifest
from pretrain.checkpoint.reader import CheckpointReader
from pretrain.config.load import compose, to_yaml
from pretrain.config.run import RunConfig
from pretrain.locate import checkpoints_of, run_of
from pretrain.state import RunState
from pretrain.train import _start_from
from probes.commands.report import run_directory
from probes.dynamics.load import load_curves
from probes.target import find_target
from tests.unit.checkpoint.ranks import save_random


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run directory with two checkpoints and a score at each."""
    directory = tmp_path_factory.mktemp("runs") / "demo"
    directory.mkdir()
    (directory / "config.yaml").write_text(to_yaml(compose(["experiment=demo"])), encoding="utf-8")
    score = {"run": "demo", "tokens": 0, "flops": 0, "task": "t", "domain": "d", "metric": "acc", "num_fewshot": 0}
    score |= {"value": 0.5, "stderr": 0.1, "plan_hash": "p", "num_items": 9}
    for step in (1, 2):
        save_random(directory / "checkpoints", step)
        with (directory / "probes.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps({**score, "step": step, "tokens": step * 1000}) + "\n")
    return directory


NAMES = [".", "checkpoints", "checkpoints/step_00000002"]


@pytest.mark.parametrize("name", NAMES)
def test_a_run_is_found_from_its_checkpoints(run: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run_of(run / name) == run and run_directory(run / name) == run
    assert list(load_curves([run / name]).runs) == ["demo"]
    monkeypatch.chdir(run / name)
    assert run_of(Path(".")).resolve() == run and run_directory(Path(".")).resolve() == run


def test_a_path_that_is_no_run_stays_as_it_is(tmp_path: Path) -> None:
    assert run_of(tmp_path / "elsewhere") == tmp_path / "elsewhere"
    assert checkpoints_of(tmp_path) == tmp_path


@pytest.mark.parametrize("name", NAMES)
def test_checkpoints_are_found_from_their_run(run: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    for command, expected in (("list", "gigabytes"), ("verify", "ok, every byte"), ("inspect", "run.tokens")):
        assert checkpoint([command, str(run / name)]) == 0
        shown = capsys.readouterr()
        assert expected in shown.out
        if command == "inspect":
            assert "2_000" in shown.out  # the newest one's position
            assert ("step_00000002 is taken" in shown.err) == (not name.endswith("2"))


@pytest.mark.parametrize("name", NAMES)
def test_what_is_scored_may_be_named_by_either(run: Path, name: str) -> None:
    told: list[str] = []
    target = find_target(run / name, say=told.append)
    assert target.facts.step == 2 and target.run is not None and target.run.resolve() == run
    assert len(told) == (0 if name.endswith("2") else 1)


@pytest.mark.parametrize("name", NAMES)
def test_a_release_takes_the_checkpoints_for_the_run(run: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert checkpoint(["release", str(run / name), "--steps", "1,2", "--dry-run"]) == 0
    assert "would be made" in capsys.readouterr().out


@pytest.mark.parametrize("name", NAMES)
def test_a_run_starts_with_the_newest_weights_of_another(run: Path, name: str) -> None:
    """Which weights `checkpoint.start_from` hands to the engine."""
    handed: list[CheckpointReader] = []
    config = RunConfig()
    config.checkpoint.start_from = str(run / name)
    parts = SimpleNamespace(
        config=config,
        spec=Manifest.read(run / "checkpoints/step_00000002").meta.model,
        engine=SimpleNamespace(sharded_state=lambda: SimpleNamespace(start_from=handed.append)),
        job=SimpleNamespace(once=lambda work: work()),
        data=SimpleNamespace(tokenizer=SimpleNamespace(vocab_size=1, fingerprint="another", name="t.model")),
    )
    _start_from(parts, RunState(seed=0))
    assert [reader.manifest.step for reader in handed] == [2]
