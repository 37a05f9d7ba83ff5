"""Whose a run directory is, and what is done when its `config.yaml` was lost."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest

from pretrain.checkpoint.manifest import MANIFEST_NAME
from pretrain.checkpoint.reader import list_checkpoints
from pretrain.config.load import compose, identity_hash, load_yaml, to_yaml
from pretrain.config.run import RunConfig
from pretrain.directory import claim
from pretrain.errors import ConfigError
from pretrain.locate import CONFIG_NAME
from tests.unit.checkpoint.ranks import make_meta, save_random

BROKEN: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda whole: b"",
    "zeros": lambda whole: bytes(4096),
    "cut in a line": lambda whole: whole[: len(whole) // 2].rstrip(b"\n"),
    "cut in the last line": lambda whole: whole[:-2],
    "cut within a string": lambda whole: whole + b'later: "cut',
}


@pytest.fixture
def config(tmp_path: Path) -> RunConfig:
    config = compose(["experiment=demo"])
    config.run.dir, config.run.name = str(tmp_path), "mine"
    return config


@pytest.fixture
def warnings() -> list[str]:
    return []


def save(config: RunConfig, step: int) -> Path:
    meta = make_meta(step, identity=identity_hash(config))
    return save_random(Path(config.run.dir) / config.run.name / "checkpoints", step, world_size=1, meta=meta)


@pytest.mark.parametrize("how", BROKEN)
def test_a_broken_configuration_is_never_taken_for_another_run(how: str, config: RunConfig, tmp_path: Path) -> None:
    path = tmp_path / CONFIG_NAME
    path.write_bytes(BROKEN[how](to_yaml(config).encode()))
    size = path.stat().st_size
    with pytest.raises(ConfigError, match=rf"{path} .*{size} bytes.*disk probably failed.*Start the run again"):
        load_yaml(path)


def test_a_file_without_a_last_newline_or_without_newer_keys_is_read(config: RunConfig, tmp_path: Path) -> None:
    path = tmp_path / CONFIG_NAME
    path.write_text(to_yaml(config).rstrip("\n"))
    assert load_yaml(path) == config
    path.write_text("train:\n  steps: 7\n")
    assert load_yaml(path).train.steps == 7


@pytest.mark.parametrize("how", [*BROKEN, "missing"])
def test_a_lost_configuration_is_written_anew_when_the_newest_checkpoint_is_of_this_run(
    how: str, config: RunConfig, warnings: list[str]
) -> None:
    path = claim(config, find_saves=list_checkpoints, warn=warnings.append) / CONFIG_NAME
    whole = path.read_bytes()
    assert load_yaml(path) == config and not warnings
    for saved in ("no checkpoint yet", "step 20 was made by the configuration that is given now"):
        if how == "missing":
            path.unlink()
        else:
            path.write_bytes(BROKEN[how](whole))
        claim(config, find_saves=list_checkpoints, warn=warnings.append)
        assert path.read_bytes() == whole
        if saved != "no checkpoint yet" or how != "missing":  # a folder without either is that of a run that begins
            assert str(path) in warnings[-1] and saved in warnings[-1]
        save(dataclasses.replace(config, run=dataclasses.replace(config.run, seed=99)), 10)
        save(config, 20)


@pytest.mark.parametrize("how", ["empty", "missing"])
def test_a_lost_configuration_of_another_run_is_not_replaced(how: str, config: RunConfig, warnings: list[str]) -> None:
    path = claim(config, find_saves=list_checkpoints, warn=warnings.append) / CONFIG_NAME
    checkpoint = save(config, 20)
    config.run.seed += 1
    path.write_bytes(b"")
    if how == "missing":
        path.unlink()
    with pytest.raises(ConfigError, match=r"step 20 was made by another configuration.*Start the run with the command"):
        claim(config, find_saves=list_checkpoints, warn=warnings.append)
    (checkpoint / MANIFEST_NAME).write_text("{")
    with pytest.raises(ConfigError, match=r"no checkpoint in .*checkpoints can be read.*put a copy"):
        claim(config, find_saves=list_checkpoints, warn=warnings.append)
    assert not warnings and (how == "missing") == (not path.exists())


def test_a_run_directory_of_another_configuration_is_refused_without_advice_to_delete_it(
    config: RunConfig, warnings: list[str]
) -> None:
    claim(config, find_saves=list_checkpoints, warn=warnings.append)
    config.run.seed += 1
    with pytest.raises(ConfigError, match=r"run\.seed: 0, now 1") as refused:
        claim(config, find_saves=list_checkpoints, warn=warnings.append)
    assert "remove" not in str(refused.value) and "delete" not in str(refused.value).lower()


@pytest.mark.parametrize("names", [["notes.txt"], ["config.yaml", "notes.txt"], [".git", "src"], ["manifest.json"]])
def test_a_folder_with_files_of_others_is_no_run_directory(
    names: list[str], config: RunConfig, warnings: list[str]
) -> None:
    directory = Path(config.run.dir) / config.run.name
    directory.mkdir()
    for name in names:
        (directory / name).write_text("")
    with pytest.raises(ConfigError, match=rf"run\.dir=.*run\.name=mine: .*no run leaves {names[-1]} there"):
        claim(config, find_saves=list_checkpoints, warn=warnings.append)
    assert sorted(path.name for path in directory.iterdir()) == sorted(names)


def test_a_folder_that_holds_what_starts_a_run_becomes_its_directory(config: RunConfig, warnings: list[str]) -> None:
    directory = Path(config.run.dir) / config.run.name
    for folder in (".hydra", "plans", "wandb"):  # plans: `probes compile run=…` beforehand
        (directory / folder).mkdir(parents=True)
    for name in ("slurm-12.out", "slurm-12.log", "job.err", ".probes.lock"):
        (directory / name).write_text("")
    assert claim(config, find_saves=list_checkpoints, warn=warnings.append) == directory and not warnings


def test_a_configuration_of_another_program_is_named(config: RunConfig, warnings: list[str]) -> None:
    directory = Path(config.run.dir) / config.run.name
    directory.mkdir()
    (directory / "config.yaml").write_text("trainer: {devices: 4}\n")
    with pytest.raises(ConfigError, match=r"mine/config\.yaml is not the configuration of a run.*trainer"):
        claim(config, find_saves=list_checkpoints, warn=warnings.append)
