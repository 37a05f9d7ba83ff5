import os
import pickle
import shutil

import pytest
import torch

from pretrain.checkpoint import reader as reader_module
from pretrain.checkpoint.blocks import Block
from pretrain.checkpoint.reader import CheckpointReader, damage_in, list_checkpoints, newest_valid
from pretrain.checkpoint.retain import retain
from pretrain.errors import CheckpointError
from tests.unit.checkpoint.ranks import SHAPES, random_state, save_random


class _Bomb:
    def __reduce__(self):
        return os.abort, ()


def _flip(path, at=-5):
    raw = bytearray(path.read_bytes())
    raw[at] ^= 1
    path.write_bytes(raw)


def _truncate(path):
    path.write_bytes(path.read_bytes()[:-4])


_DAMAGE = {
    "flipped bit in weights": lambda p: _flip(p / "param_00001.safetensors"),
    "flipped bit in a moment": lambda p: _flip(p / "exp_avg_sq_00000.safetensors"),
    "flipped bit in a shard's header": lambda p: _flip(p / "param_00000.safetensors", 20),
    "truncated shard": lambda p: _truncate(p / "exp_avg_00000.safetensors"),
    "empty shard": lambda p: (p / "param_00000.safetensors").write_bytes(b""),
    "longer shard": lambda p: (p / "param_00000.safetensors").open("ab").write(b"x"),
    "missing shard": lambda p: (p / "param_00001.safetensors").unlink(),
    "shard is a folder": lambda p: (
        (p / "param_00001.safetensors").unlink(),
        (p / "param_00001.safetensors").mkdir(),
    ),
    "missing manifest": lambda p: (p / "manifest.json").unlink(),
    "garbage manifest": lambda p: (p / "manifest.json").write_bytes(b"\x00\xff garbage"),
    "manifest of another step": lambda p: shutil.copy(
        p.parent / "step_00000001" / "manifest.json", p / "manifest.json"
    ),
    "pickle as a shard": lambda p: (p / "param_00000.safetensors").write_bytes(pickle.dumps(_Bomb())),
    "pickle as the manifest": lambda p: (p / "manifest.json").write_bytes(pickle.dumps(_Bomb())),
}


@pytest.mark.parametrize("damage", _DAMAGE.values(), ids=_DAMAGE.keys())
def test_a_damaged_checkpoint_is_refused_and_an_older_one_chosen(tmp_path, damage):
    old, new = save_random(tmp_path, 1), save_random(tmp_path, 2)
    assert newest_valid(tmp_path) == new
    damage(new)
    said = []
    assert newest_valid(tmp_path, log=said.append) == old
    assert len(said) == 1 and said[0].startswith("Passed over step_00000002: ") and len(said[0]) > 40
    assert new.exists()  # choosing moves nothing


@pytest.mark.parametrize("text", ["", "step_00000077", "\x00", None])
def test_the_latest_file_decides_nothing(tmp_path, text):
    path = save_random(tmp_path, 2)
    (tmp_path / "latest").unlink() if text is None else (tmp_path / "latest").write_text(text)
    (tmp_path / "step_00000009.writing").mkdir()
    (tmp_path / "step_00000008").write_text("a file")
    assert newest_valid(tmp_path) == path


def test_no_folder_or_nothing_in_it_gives_none(tmp_path):
    assert newest_valid(tmp_path) is None and newest_valid(tmp_path / "none") is None


def test_damaged_bytes_are_noticed_when_they_are_read(tmp_path):
    path = save_random(tmp_path, 1, world_size=1)
    _flip(path / "param_00000.safetensors")
    reader = CheckpointReader(path)
    with pytest.raises(CheckpointError, match=r"param_00000.safetensors: \w+ is damaged"):
        for key in SHAPES:
            reader.tensor(key)
    unchecked = CheckpointReader(path, verify=False)
    assert {key: tuple(unchecked.tensor(key).shape) for key in SHAPES} == SHAPES


def test_a_file_cut_short_after_opening_is_an_error_and_not_a_crash(tmp_path):
    path = save_random(tmp_path, 1)
    reader = CheckpointReader(path)
    for file in path.glob("*.safetensors"):
        _truncate(file)
    with pytest.raises(CheckpointError, match="expected"):
        reader.tensor("w")


def test_an_extra_file_is_never_opened(tmp_path):
    path = save_random(tmp_path, 1)
    (path / "optimizer.pt").write_bytes(pickle.dumps(_Bomb()))
    assert newest_valid(tmp_path) == path and damage_in(path) is None


def test_what_is_asked_for_must_be_there(tmp_path):
    path = save_random(tmp_path, 1)
    reader = CheckpointReader(path)
    with pytest.raises(CheckpointError, match="no tensor 'x'"):
        reader.tensor("x")
    with pytest.raises(CheckpointError, match=r"has shape \(13, 10\) in the model"):
        reader.fill([Block("w", (13, 10), (0, 0), (13, 10))], "param", torch.zeros(130))
    save_random(tmp_path, 2)
    retain(tmp_path, keep=1)
    with pytest.raises(CheckpointError, match="not exp_avg"):
        CheckpointReader(path).tensor("w", "exp_avg")


def test_any_float_type_is_filled_through_a_bounded_buffer(tmp_path, monkeypatch):
    monkeypatch.setattr("pretrain.checkpoint.source._PIECE_ELEMENTS", 7)
    reader = CheckpointReader(save_random(tmp_path, 1))
    whole = random_state(SHAPES, 1)["w"]["param"].view(-1)
    block = [Block("w", (12, 10), (0, 0), (12, 10))]
    out = torch.zeros(100, dtype=torch.bfloat16)
    reader.fill(block, "param", out, 11)
    assert torch.equal(out, whole[11:111].bfloat16())
    strided = torch.zeros(240)
    reader.fill(block, "param", strided[::2])
    assert torch.equal(strided[::2], whole)


def test_few_files_are_mapped_at_a_time(tmp_path, monkeypatch):
    monkeypatch.setattr(reader_module, "_MAX_OPEN_MAPS", 2)
    reader = CheckpointReader(save_random(tmp_path, 1, world_size=5))
    state = random_state(SHAPES, 1)
    for key, kinds in state.items():
        for kind, whole in kinds.items():
            assert torch.equal(reader.tensor(key, kind), whole)
    assert len(reader._maps) <= 2


def test_the_list_says_what_is_wrong(tmp_path):
    for step in (3, 1, 2):
        save_random(tmp_path, step)
    _truncate(tmp_path / "step_00000002" / "param_00000.safetensors")
    found = list_checkpoints(tmp_path)
    assert [(info.step, info.problem is None) for info in found] == [(1, True), (2, False), (3, True)]
    assert "bytes, expected" in found[1].problem
