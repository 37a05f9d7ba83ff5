"""Two processes over gloo: what threads stand in for elsewhere."""

import sys
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from pretrain.checkpoint.publish import Publisher
from pretrain.checkpoint.reader import CheckpointReader, damage_in
from tests.unit.checkpoint.ranks import SHAPES, make_meta, random_state, scattered


def _rank(rank: int, root: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{root}/rendezvous", rank=rank, world_size=2)
    publisher = Publisher(Path(root) / "c", rank=rank, world_size=2, barrier=dist.barrier, background=True)
    for step in (1, 2):
        publisher.save(step, scattered(random_state(SHAPES, step), 2, step)[rank], make_meta(step))
        total = torch.ones(1)  # training communicates while files are written
        for _ in range(20):
            dist.all_reduce(total)
    publisher.wait()
    dist.destroy_process_group()


def test_two_processes_save_while_they_communicate(tmp_path):
    sys.modules.setdefault(_rank.__module__, sys.modules[__name__])
    mp.start_processes(_rank, (str(tmp_path),), nprocs=2, start_method="fork")
    for step in (1, 2):
        path = tmp_path / "c" / f"step_0000000{step}"
        assert damage_in(path) is None
        state = random_state(SHAPES, step)
        assert all(torch.equal(CheckpointReader(path).tensor(key), state[key]["param"]) for key in SHAPES)
