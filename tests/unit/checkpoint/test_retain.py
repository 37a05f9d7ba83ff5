import os

import pytest
import torch

from pretrain.checkpoint import retain as retain_module
from pretrain.checkpoint.reader import CheckpointReader, damage_in, newest_valid
from pretrain.checkpoint.retain import retain
from pretrain.errors import ConfigError
from tests.unit.checkpoint.ranks import SHAPES, random_state, save_random


def _save(root, steps):
    return [save_random(root, step) for step in steps]


def test_older_checkpoints_lose_moments_and_keep_weights(tmp_path):
    paths = _save(tmp_path, [1, 2, 3, 4])
    assert retain(tmp_path, keep=2) == paths[:2]
    assert [CheckpointReader(path).manifest.is_resumable for path in paths] == [False, False, True, True]
    assert sorted(os.listdir(paths[0])) == ["manifest.json", "param_00000.safetensors", "param_00001.safetensors"]
    for step, path in enumerate(paths, 1):
        assert damage_in(path) is None
        assert torch.equal(CheckpointReader(path).tensor("w"), random_state(SHAPES, step)["w"]["param"])
    assert retain(tmp_path, keep=2) == []


def test_null_keeps_everything_and_zero_is_refused(tmp_path):
    (path,) = _save(tmp_path, [1])
    assert retain(tmp_path, keep=None) == [] and CheckpointReader(path).manifest.is_resumable
    with pytest.raises(ConfigError, match="checkpoint.keep=0"):
        retain(tmp_path, keep=0)


def test_a_damaged_checkpoint_does_not_count_as_kept(tmp_path):
    paths = _save(tmp_path, [1, 2, 3])
    (paths[2] / "exp_avg_00000.safetensors").unlink()
    assert retain(tmp_path, keep=1) == paths[:1]
    assert newest_valid(tmp_path) == paths[1]


def test_a_crash_between_manifest_and_files_is_finished_by_the_next_call(tmp_path, monkeypatch):
    paths = _save(tmp_path, [1, 2])
    monkeypatch.setattr(retain_module, "_remove_moments", lambda path: (_ for _ in ()).throw(OSError("killed")))
    with pytest.raises(OSError, match="killed"):
        retain(tmp_path, keep=1)
    monkeypatch.undo()
    assert damage_in(paths[0]) is None and (paths[0] / "exp_avg_00000.safetensors").exists()
    assert retain(tmp_path, keep=1) == []
    assert not list(paths[0].glob("exp_avg*")) and damage_in(paths[0]) is None


def test_weights_alone_are_not_chosen_to_resume_from(tmp_path):
    paths = _save(tmp_path, [1, 2])
    retain(tmp_path, keep=1)
    (paths[1] / "manifest.json").unlink()
    said = []
    assert newest_valid(tmp_path, log=said.append) is None
    assert "weights only" in said[1]


def test_milestones_stay_resumable_beside_the_newest(tmp_path):
    paths = _save(tmp_path, [1, 2, 3, 4])
    assert retain(tmp_path, keep=1, always=lambda step: step == 2) == [paths[0], paths[2]]
    assert [CheckpointReader(path).manifest.is_resumable for path in paths] == [False, True, False, True]


def test_a_milestone_that_is_among_the_newest_counts_as_one_of_them(tmp_path):
    paths = _save(tmp_path, [1, 2, 3, 4])
    assert retain(tmp_path, keep=1, always=lambda step: step % 2 == 0) == [paths[0], paths[2]]
