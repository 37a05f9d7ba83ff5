"""Ranks without processes: publishers in threads that meet at a barrier, and states scattered over them at random."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pretrain.checkpoint.blocks import KINDS, Block, Chunk, cut
from pretrain.checkpoint.manifest import CheckpointMeta
from pretrain.checkpoint.publish import Publisher
from pretrain.config.model import ModelConfig
from pretrain.model.spec import ModelSpec
from pretrain.state import RunState

State = dict[str, dict[str, Tensor]]  # key → kind → whole tensor

TINY = ModelConfig(
    num_layers=2, hidden_size=16, ffn_hidden_size=24, num_attention_heads=4, num_query_groups=2, vocab_multiple=32
)


def make_meta(step: int = 1, *, spec: ModelSpec | None = None, identity: str = "same-run") -> CheckpointMeta:
    return CheckpointMeta(
        optimizer_step=step,
        run_state=RunState(seed=7, step=step, tokens=1000 * step, samples=10 * step).state_dict(),
        config_hash="c0ffee",
        identity_hash=identity,
        model=spec or ModelSpec.from_config(TINY, 300),
        sequence_length=64,
        tokenizer_fingerprint="abc",
        layout={"engine": "none", "world_size": 1},
    )


def random_state(shapes: Mapping[str, tuple[int, ...]], seed: int = 0) -> State:
    generator = torch.Generator().manual_seed(seed)
    return {key: {kind: torch.randn(shape, generator=generator) for kind in KINDS} for key, shape in shapes.items()}


SHAPES = {"w": (12, 10), "b": (7,), "t": (3, 4, 5)}


def grid(key: str, shape: tuple[int, ...], rng: random.Random) -> list[Block]:
    """A tensor cut into two to three blocks along one random axis, as tensor parallelism does."""
    axis, parts = rng.randrange(len(shape)), rng.randint(1, 3)
    cuts = sorted({0, shape[axis], *(rng.randint(0, shape[axis]) for _ in range(parts - 1))})
    blocks = []
    for low, high in zip(cuts, cuts[1:], strict=False):
        offset = tuple(low if a == axis else 0 for a in range(len(shape)))
        extent = tuple(high - low if a == axis else size for a, size in enumerate(shape))
        blocks.append(Block(key, shape, offset, extent))
    return blocks


def values_of(block: Block, whole: Tensor) -> Tensor:
    """The block's elements of a whole tensor, flat."""
    index = tuple(slice(o, o + s) for o, s in zip(block.offset, block.shape, strict=True))
    return whole[index].reshape(-1)


def scattered(state: State, world_size: int, seed: int) -> list[list[Chunk]]:
    """Every element on exactly one rank: blocks of a random grid, in random flat ranges, on random ranks."""
    rng = random.Random(seed)
    chunks: list[list[Chunk]] = [[] for _ in range(world_size)]
    for key, kinds in state.items():
        for block in grid(key, tuple(kinds["param"].shape), rng):
            ends = sorted({0, block.numel, *(rng.randint(0, block.numel) for _ in range(rng.randint(0, 4)))})
            for low, high in zip(ends, ends[1:], strict=False):
                part = {kind: values_of(block, whole)[low:high] for kind, whole in kinds.items()}
                rng.choice(chunks).extend(cut([block], low, part))
    return chunks


def run_ranks(world_size: int, work: Callable[[int, Callable[[], object]], Any]) -> list[Any]:
    """Calls `work(rank, barrier)` on one thread per rank; returns what each returned or raised."""
    barrier, results = threading.Barrier(world_size, timeout=120), [None] * world_size

    def call(rank: int) -> None:
        try:
            results[rank] = work(rank, barrier.wait)
        except Exception as error:
            results[rank] = error

    threads = [threading.Thread(target=call, args=(rank,)) for rank in range(world_size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def save(
    root: Path,
    step: int,
    chunks: list[list[Chunk]],
    *,
    meta: CheckpointMeta | None = None,
    background: bool = False,
    **options: Any,
) -> list[Any]:
    """One save by as many ranks as there are lists of chunks; what each rank returned or raised."""

    def work(rank: int, barrier: Callable[[], object]) -> Path | None:
        publisher = Publisher(
            root, rank=rank, world_size=len(chunks), barrier=barrier, background=background, **options
        )
        path = publisher.save(step, chunks[rank], meta or make_meta(step))
        publisher.wait()
        return path

    return run_ranks(len(chunks), work)


def save_random(root: Path, step: int, *, world_size: int = 2, **options: Any) -> Path:
    """A complete checkpoint whose values depend on the step."""
    results = save(root, step, scattered(random_state(SHAPES, step), world_size, step), **options)
    for result in results:
        if isinstance(result, Exception):
            raise result
    return results[0]
