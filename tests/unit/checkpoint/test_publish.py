import dataclasses
import os
import random
import resource
import subprocess
import threading

import pytest
import torch
from safetensors import safe_open

from pretrain.checkpoint import publish
from pretrain.checkpoint.blocks import Block, Chunk
from pretrain.checkpoint.manifest import Manifest
from pretrain.checkpoint.publish import Publisher
from pretrain.checkpoint.reader import CheckpointReader, damage_in, newest_valid
from pretrain.checkpoint.reference import VERSION, Reference
from pretrain.errors import CheckpointError
from tests.unit.checkpoint.ranks import (
    SHAPES,
    grid,
    make_meta,
    random_state,
    run_ranks,
    save,
    save_random,
    scattered,
    values_of,
)


@pytest.mark.parametrize("seed", range(25))
def test_what_any_number_of_ranks_wrote_any_other_number_reads(tmp_path, seed):
    rng = random.Random(seed)
    shapes = {f"t{i}": tuple(rng.randint(1, 9) for _ in range(rng.randint(1, 3))) for i in range(4)}
    state = random_state(shapes, seed)
    (path, *_) = save(tmp_path, 5, scattered(state, rng.randint(1, 5), seed), background=bool(seed % 2))
    reader = CheckpointReader(path)
    for key, shape in shapes.items():
        for kind, whole in state[key].items():
            assert torch.equal(reader.tensor(key, kind), whole)
            for block in grid(key, shape, random.Random(seed + 1)):
                low = rng.randint(0, block.numel)
                high = rng.randint(low, block.numel)
                out = torch.full((high - low,), float("nan"))
                reader.fill([block], kind, out, low)
                assert torch.equal(out, values_of(block, whole)[low:high])


def test_a_published_folder_has_shards_and_a_manifest_and_nothing_else(tmp_path):
    path = save_random(tmp_path, 12)
    shards = {f"{kind}_{rank:05d}.safetensors" for kind in ("param", "exp_avg", "exp_avg_sq") for rank in (0, 1)}
    assert path.name == "step_00000012"
    assert set(os.listdir(path)) == shards | {"manifest.json"}
    assert set(os.listdir(tmp_path)) == {"step_00000012", "latest"}
    assert (tmp_path / "latest").read_text() == "step_00000012\n"


def test_shards_are_plain_safetensors_of_fp32(tmp_path):
    path = save_random(tmp_path, 1)
    count = 0
    for file in path.glob("param_*.safetensors"):
        with safe_open(file, "pt") as opened:
            for name in opened.keys():  # noqa: SIM118
                tensor = opened.get_tensor(name)
                assert tensor.dtype == torch.float32 and tensor.ndim == 1
                count += tensor.numel()
    assert count == 120 + 7 + 60


def test_lower_precision_state_is_stored_as_the_same_numbers(tmp_path):
    block, values = Block("w", (6,), (0,), (6,)), torch.randn(6).bfloat16()
    save(tmp_path, 1, [[Chunk(block, 0, {"param": values})]], kinds=("param",))
    reader = CheckpointReader(tmp_path / "step_00000001")
    out = torch.zeros(6, dtype=torch.bfloat16)
    reader.fill([block], "param", out)
    assert torch.equal(out, values) and torch.equal(reader.tensor("w"), values.float())
    assert not reader.manifest.is_resumable


def test_the_copy_is_taken_before_a_background_save_returns(tmp_path, monkeypatch):
    go = threading.Event()
    real = publish.write_shard
    monkeypatch.setattr(publish, "write_shard", lambda *a: go.wait(30) and real(*a))
    state = random_state(SHAPES)
    before = {key: kinds["param"].clone() for key, kinds in state.items()}
    published = []
    publisher = Publisher(
        tmp_path, rank=0, world_size=1, barrier=lambda: None, background=True, on_published=published.append
    )
    path = publisher.save(1, scattered(state, 1, 0)[0], make_meta())
    assert not path.exists()
    for kinds in state.values():
        kinds["param"].zero_()  # training goes on
    go.set()
    assert publisher.wait() == path and published == [path]
    assert publisher.wait() is None
    assert all(torch.equal(CheckpointReader(path).tensor(key), value) for key, value in before.items())


def test_the_live_model_is_asked_once_for_what_is_written_and_not_at_all_for_what_is_there(tmp_path):
    reference, asked, state = Reference(VERSION + 1, "fp32", b"log"), [], random_state(SHAPES)
    publisher = Publisher(tmp_path, rank=0, world_size=1, barrier=lambda: None, background=True)

    def ask():
        asked.append(True)
        return reference

    publisher.reserve(scattered(state, 1, 0)[0])
    for _ in range(2):
        path = publisher.save(1, scattered(state, 1, 0)[0], make_meta(), reference=ask)
        publisher.wait()
    assert len(asked) == 1 and Manifest.read(path).meta == dataclasses.replace(make_meta(), reference=reference)
    for key, kinds in state.items():
        assert torch.equal(CheckpointReader(path).tensor(key), kinds["param"])


def test_saving_a_step_again_leaves_a_sound_checkpoint_as_it_is(tmp_path):
    path = save_random(tmp_path, 1)
    before = {file.name: (file.stat().st_mtime_ns, file.stat().st_ino) for file in path.iterdir()}
    assert save_random(tmp_path, 1, world_size=3) == path
    assert {file.name: (file.stat().st_mtime_ns, file.stat().st_ino) for file in path.iterdir()} == before


def test_a_damaged_folder_of_the_same_step_is_moved_aside(tmp_path):
    for number in (1, 2):
        path = save_random(tmp_path, 1)
        shard = path / "param_00000.safetensors"
        raw = bytearray(shard.read_bytes())
        raw[-1] ^= 1
        shard.write_bytes(raw)
        assert save_random(tmp_path, 1) == path and damage_in(path) is None
        assert (tmp_path / f"step_00000001.damaged-{number}").is_dir()


def test_a_folder_of_another_run_is_moved_aside(tmp_path):
    save_random(tmp_path, 1, meta=make_meta(identity="other"))
    path = save_random(tmp_path, 1)
    assert Manifest.read(path).meta.identity_hash == "same-run"
    assert (tmp_path / "step_00000001.replaced-1").is_dir()


def test_a_rank_that_does_not_finish_leaves_nothing_that_looks_like_a_checkpoint(tmp_path):
    old = save_random(tmp_path, 1)
    chunks = scattered(random_state(SHAPES), 2, 0)
    publisher = Publisher(tmp_path, rank=0, world_size=2, barrier=lambda: None, background=True, timeout_seconds=0.2)
    publisher.save(2, chunks[0], make_meta(2))
    with pytest.raises(CheckpointError, match=r"ranks \[1\] did not finish"):
        publisher.wait()
    assert newest_valid(tmp_path) == old and not list(tmp_path.glob("*.writing"))


def test_when_one_rank_fails_every_rank_learns_why_and_the_next_save_works(tmp_path, monkeypatch):
    real = publish.write_shard

    def fail_once(path, *rest):
        if path.name == "exp_avg_00001.safetensors" and "00000002" in str(path):
            raise OSError(28, "No space left on device")
        return real(path, *rest)

    monkeypatch.setattr(publish, "write_shard", fail_once)
    old, events = save_random(tmp_path, 1, world_size=3), []

    def work(rank, barrier):
        publisher = Publisher(tmp_path, rank=rank, world_size=3, barrier=barrier, background=True)
        publisher.save(2, scattered(random_state(SHAPES), 3, 0)[rank], make_meta(2))
        try:
            publisher.wait()
        except CheckpointError as error:
            events.append((rank, str(error)))
        assert newest_valid(tmp_path) == old
        publisher.save(3, scattered(random_state(SHAPES), 3, 0)[rank], make_meta(3))
        return publisher.wait()

    assert run_ranks(3, work) == [tmp_path / "step_00000003"] * 3
    assert sorted(rank for rank, _ in events) == [0, 1, 2]
    assert all("are free" in text and "checkpoint.every" in text for _, text in events)
    assert set(os.listdir(tmp_path)) == {"step_00000001", "step_00000003", "latest"}


def test_a_rank_without_memory_for_the_copy_asks_the_model_like_the_others_and_the_save_fails_on_all(tmp_path):
    old, events = save_random(tmp_path, 1, world_size=2), []

    def work(rank, barrier):
        publisher = Publisher(tmp_path, rank=rank, world_size=2, barrier=barrier, background=True)

        def ask():
            barrier()  # as scoring does: a rank that does not come would be waited for
            return Reference(VERSION + 1, "fp32", b"log")

        def chunks():
            if rank == 1 and not events:
                raise MemoryError("no host memory")
            yield from scattered(random_state(SHAPES), 2, 0)[rank]

        publisher.save(2, chunks(), make_meta(2), reference=ask)
        try:
            publisher.wait()
        except CheckpointError as error:
            events.append(str(error))
        assert newest_valid(tmp_path) == old
        publisher.save(3, chunks(), make_meta(3), reference=ask)
        return publisher.wait()

    assert run_ranks(2, work) == [tmp_path / "step_00000003"] * 2
    assert len(events) == 2 and all("MemoryError: no host memory" in text for text in events)


def test_a_failure_nobody_waited_for_surfaces_at_the_next_save(tmp_path):
    chunks = scattered(random_state(SHAPES), 2, 0)
    publisher = Publisher(tmp_path, rank=0, world_size=2, barrier=lambda: None, background=True, timeout_seconds=0.05)
    publisher.save(1, chunks[0], make_meta(1))
    with pytest.raises(CheckpointError, match="step_00000001"):
        publisher.save(2, chunks[0], make_meta(2))


@pytest.mark.parametrize("change", ["gap", "overlap"])
def test_a_state_map_with_a_gap_or_an_overlap_is_never_published(tmp_path, change):
    chunks = scattered(random_state(SHAPES), 2, 0)
    if change == "gap":
        chunks[1].pop()
    else:
        chunks[0].append(chunks[1][0])
    results = save(tmp_path, 1, chunks)
    assert all(isinstance(result, CheckpointError) for result in results)
    assert "not the model" in str(results[0]) and not list(tmp_path.glob("step_*"))


def test_a_callback_that_fails_is_reported_and_the_checkpoint_stays(tmp_path):
    def fail(path):
        raise OSError("export failed")

    results = save(tmp_path, 1, scattered(random_state(SHAPES), 2, 0), on_published=fail)
    assert "export failed" in str(results[0]) and results[1] == newest_valid(tmp_path)


def test_leftovers_of_dead_saves_go_at_the_next_save(tmp_path):
    (tmp_path / "step_00000009.writing").mkdir(parents=True)
    (tmp_path / "step_00000009.writing" / "part_00000.json").write_text("{}")
    save_random(tmp_path, 10)
    assert set(os.listdir(tmp_path)) == {"step_00000010", "latest"}


def _expect_failure_then_success(root, state, restore):
    first = save(root, 2, scattered(state, 2, 0))
    restore()
    second = save(root, 3, scattered(random_state(SHAPES), 2, 0))
    assert all(isinstance(result, CheckpointError) for result in first)
    assert all("Older checkpoints are intact" in str(result) and "are free" in str(result) for result in first)
    assert second == [root / "step_00000003"] * 2
    assert set(os.listdir(root)) == {"step_00000001", "step_00000003", "latest"}
    assert damage_in(root / "step_00000001") is None


def test_a_file_size_limit_fails_the_save_and_not_the_run(tmp_path):
    save_random(tmp_path, 1)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
        _expect_failure_then_success(
            tmp_path, random_state({"w": (40, 40)}), lambda: resource.setrlimit(resource.RLIMIT_FSIZE, before)
        )
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_fails_the_save_and_its_space_is_free_again(tmp_path):
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(tmp_path)], capture_output=True)
    if mounted.returncode:
        pytest.skip("no right to mount a small disk")
    try:
        save_random(tmp_path, 1)
        _expect_failure_then_success(tmp_path, random_state({"w": (1000, 1000)}), lambda: None)
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)
